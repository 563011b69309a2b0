// Heatmap and state timeline are parts of Grafana's server, not of its published components: these
// two are drawn in their likeness.

import { FieldType, getDisplayProcessor } from './grafana.js';
import { theme } from './frames.js';

const TEXT = { fill: theme.colors.text.secondary, fontSize: 11, fontFamily: 'Inter, sans-serif' };

function clock(time) {
  return new Date(time * 1000).toISOString().slice(11, 16);
}

function TimeAxis({ left, width, top, end, range }) {
  const marks = 5;
  return Array.from({ length: marks }, (_, index) => {
    const share = (index + 0.5) / marks;
    return (
      <text key={index} x={left + share * width} y={top + 14} textAnchor="middle" {...TEXT}>
        {clock(end - range + share * range)}
      </text>
    );
  });
}

export function HeatmapLikeness({ panel, answered, width, height, end, range }) {
  const [{ step, result }] = answered;
  const edge = ({ metric }) => (metric.le === '+Inf' ? Infinity : Number(metric.le));
  const cumulative = [...result].sort((one, other) => edge(one) - edge(other));
  const counts = cumulative.map((bucket, index) => {
    const below = new Map(cumulative[index - 1]?.values ?? []);
    return bucket.values.map(([time, value]) => [time, Number(value) - Number(below.get(time) ?? 0)]);
  });
  const filled = counts.map((row) => row.some(([, count]) => count > 1e-9));
  const first = filled.indexOf(true);
  if (first < 0) return <div style={{ color: TEXT.fill, padding: 8 }}>No data</div>;
  const lowest = Math.max(0, first - 1);
  const shown = counts.slice(lowest, filled.lastIndexOf(true) + 2);
  const most = Math.max(...shown.flat().map(([, count]) => count));
  const field = { type: FieldType.number, config: { unit: panel.options.yAxis.unit } };
  const display = getDisplayProcessor({ field, theme });
  const left = 56;
  const bottom = 20;
  const every = Math.ceil((14 * shown.length) / (height - bottom)); // labels that do not touch
  const cell = { w: ((width - left) * step) / range, h: (height - bottom) / shown.length };
  return (
    <svg width={width} height={height}>
      {shown.map((row, index) => {
        const top = (shown.length - 1 - index) * cell.h;
        const upper = edge(cumulative[lowest + index]);
        const { text, suffix } = display(upper);
        return (
          <g key={index}>
            <text x={left - 6} y={Math.max(top + 5, 10)} textAnchor="end" {...TEXT}>
              {upper === Infinity || index % every ? '' : `${text}${suffix ?? ''}`}
            </text>
            {row
              .filter(([, count]) => count > 1e-9)
              .map(([time, count]) => (
                <rect
                  key={time}
                  x={left + ((time - step - (end - range)) / range) * (width - left)}
                  y={top}
                  width={Math.max(1, cell.w - 1)}
                  height={cell.h - 1}
                  fill={`hsl(${28 + 20 * (count / most) ** 0.5}, 95%, ${12 + 55 * (count / most) ** 0.5}%)`}
                />
              ))}
          </g>
        );
      })}
      <TimeAxis left={left} width={width - left} top={height - bottom} end={end} range={range} />
    </svg>
  );
}

export function TimelineLikeness({ panel, frames, width, height, end, range }) {
  const words = panel.fieldConfig.defaults.mappings[0].options;
  const colour = (value) => theme.visualization.getColorByName(words[value].color);
  const left = 110;
  const bottom = 42;
  const row = (height - bottom) / Math.max(1, frames.length);
  return (
    <svg width={width} height={height}>
      {frames.map((frame, index) => {
        const [time, value] = frame.fields;
        const step = ((time.values[1] - time.values[0]) / 1000 / range) * (width - left);
        const runs = [];
        value.values.slice(1).forEach((state, at) => {
          const last = runs.at(-1);
          if (last?.state === state) last.length += 1;
          else runs.push({ state, at, length: 1 });
        });
        return (
          <g key={index}>
            <text x={left - 8} y={(index + 0.5) * row + 4} textAnchor="end" {...TEXT}>
              {value.config.displayNameFromDS}
            </text>
            {runs
              .filter(({ state }) => state !== null)
              .map(({ state, at, length }) => (
                <rect
                  key={at}
                  x={left + at * step}
                  y={index * row + row * 0.1}
                  width={length * step}
                  height={row * 0.8}
                  fill={colour(state)}
                  fillOpacity={panel.fieldConfig.defaults.custom.fillOpacity / 100}
                />
              ))}
          </g>
        );
      })}
      <TimeAxis left={left} width={width - left} top={height - bottom} end={end} range={range} />
      {Object.entries(words).map(([value, { text }], index) => (
        <g key={value} transform={`translate(${8 + index * 90}, ${height - 8})`}>
          <rect y={-9} width={14} height={4} fill={colour(value)} />
          <text x={20} y={-3} {...TEXT}>
            {text}
          </text>
        </g>
      ))}
    </svg>
  );
}
