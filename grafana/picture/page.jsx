// A board as a page: Grafana's panels at their places, on the answers that were fetched before.

import { createRoot } from 'react-dom/client';
import { displayed, seriesFrames, tableFrame, theme } from './frames.js';
import {
  BigValue,
  GlobalStyles,
  PanelChrome,
  Table,
  ThemeContext,
  TimeSeries,
  dateTime,
} from './grafana.js';
import { HeatmapLikeness, TimelineLikeness } from './likeness.jsx';

const { board, answered } = window.drawn;
const { end, range, results } = answered;
const WIDTH = 1600;
const GAP = 8;
const MARGIN = 16;
const TOP = 56;
const COLUMN = (WIDTH - 2 * MARGIN + GAP) / 24;
const ROW = 38; // Grafana's 30 pixels and the gap

const timeRange = {
  from: dateTime((end - range) * 1000),
  to: dateTime(end * 1000),
  raw: { from: dateTime((end - range) * 1000), to: dateTime(end * 1000) },
};

function Drawn({ panel, width, height }) {
  const answer = results[panel.id];
  const size = { width, height };
  switch (panel.type) {
    case 'stat': {
      const { noValue, unit } = panel.fieldConfig.defaults;
      const value = displayed(panel, answer);
      const none = { text: noValue, numeric: NaN, color: theme.colors.text.disabled };
      return (
        <BigValue
          {...size}
          theme={theme}
          value={value ?? none}
          unit={unit}
          colorMode={value ? panel.options.colorMode : 'value'}
          graphMode={panel.options.graphMode}
          justifyMode={panel.options.justifyMode}
          textMode={panel.options.textMode}
        />
      );
    }
    case 'timeseries': {
      const frames = seriesFrames(panel, answer, answered);
      frames.forEach((frame, index) => {
        frame.fields[1].state = { seriesIndex: index };
        frame.fields[1].config.color = {
          mode: 'fixed',
          fixedColor: theme.visualization.palette[index % theme.visualization.palette.length],
        };
      });
      if (!frames.length) return <div style={{ color: theme.colors.text.secondary, padding: 8 }}>No data</div>;
      return (
        <TimeSeries
          {...size}
          frames={frames}
          timeRange={timeRange}
          timeZone="utc"
          legend={panel.options.legend}
          options={panel.options}
        />
      );
    }
    case 'state-timeline':
      return (
        <TimelineLikeness
          {...size}
          panel={panel}
          frames={seriesFrames(panel, answer, answered)}
          end={end}
          range={range}
        />
      );
    case 'heatmap':
      return <HeatmapLikeness {...size} panel={panel} answered={answer} end={end} range={range} />;
    case 'table':
      return <Table {...size} data={tableFrame(panel, answer)} showTypeIcons={false} />;
  }
  throw new Error(`no picture of a panel of the kind ${panel.type}`);
}

function Placed({ panel }) {
  const { x, y, w, h } = panel.gridPos;
  const size = { width: w * COLUMN - GAP, height: h * ROW - GAP };
  const place = { position: 'absolute', left: MARGIN + x * COLUMN, top: TOP + y * ROW, ...size };
  if (panel.type === 'row') {
    return <div style={{ ...place, fontSize: 16, fontWeight: 500, paddingTop: 4 }}>{panel.title}</div>;
  }
  return (
    <div style={place}>
      <PanelChrome title={panel.title} description={panel.description} {...size}>
        {(width, height) => <Drawn panel={panel} width={width} height={height} />}
      </PanelChrome>
    </div>
  );
}

function Board() {
  const variables = board.templating.list.filter(({ type }) => type === 'query');
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <div style={{ position: 'absolute', left: MARGIN, top: 14, fontSize: 20, fontWeight: 500 }}>
        {board.title}
        <span style={{ fontSize: 13, color: theme.colors.text.secondary, marginLeft: 24 }}>
          {variables.map(({ label }) => `${label}: All`).join('    ·    ')}
        </span>
      </div>
      {board.panels.map((panel) => (
        <Placed key={panel.id} panel={panel} />
      ))}
    </ThemeContext.Provider>
  );
}

document.body.style.background = theme.colors.background.canvas;
createRoot(document.getElementById('root')).render(<Board />);
