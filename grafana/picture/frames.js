// Prometheus's answers as Grafana's data frames, with the panel's units, words and colours.

import { FieldType, createTheme, getDisplayProcessor, toDataFrame } from './grafana.js';

export const theme = createTheme({ colors: { mode: 'dark' } });

function withDisplay(field) {
  field.display = getDisplayProcessor({ field, theme, timeZone: 'utc' });
  return field;
}

function legendOf(target, metric) {
  if (target.legendFormat === '__auto') return '';
  return target.legendFormat.replace(/{{(\w+)}}/g, (_, label) => metric[label] ?? '');
}

/** One frame a series, every step of the range in each: a gap is null, as in Grafana. */
export function seriesFrames(panel, answered, { end, range }) {
  return answered.flatMap(({ target, step, result }) =>
    result.map(({ metric, values }) => {
      const known = new Map(values.map(([time, value]) => [time, Number(value)]));
      const times = [];
      for (let time = end - range; time <= end; time += step) times.push(time);
      const frame = toDataFrame({
        fields: [
          { name: 'Time', type: FieldType.time, values: times.map((time) => time * 1000) },
          {
            name: 'Value',
            type: FieldType.number,
            labels: metric,
            values: times.map((time) => known.get(time) ?? null),
            config: {
              ...panel.fieldConfig.defaults,
              custom: { ...panel.fieldConfig.defaults.custom },
              displayNameFromDS: legendOf(target, metric),
            },
          },
        ],
      });
      frame.refId = target.refId;
      frame.fields.forEach(withDisplay);
      return frame;
    }),
  );
}

/** The one number of a stat, ready to be shown; null when there is no such series. */
export function displayed(panel, answered) {
  const sample = answered[0].result[0];
  if (!sample) return null;
  const field = { name: 'Value', type: FieldType.number, config: panel.fieldConfig.defaults };
  return getDisplayProcessor({ field, theme, timeZone: 'utc' })(Number(sample.value[1]));
}

/** The frame of a table: the results merged by their labels, the columns in their order. */
export function tableFrame(panel, answered) {
  const organized = panel.transformations.find(({ id }) => id === 'organize').options;
  const rows = new Map();
  for (const { target, result } of answered) {
    const column = answered.length > 1 ? `Value #${target.refId}` : 'Value';
    for (const { metric, value } of result) {
      const key = JSON.stringify(metric);
      rows.set(key, { ...rows.get(key), ...metric, [column]: Number(value[1]) });
    }
  }
  const names = Object.keys(organized.indexByName);
  const { displayName, desc } = panel.options.sortBy[0];
  const sorted = names.find((name) => organized.renameByName[name] === displayName);
  const ordered = [...rows.values()].sort(
    (one, other) => (desc ? -1 : 1) * ((one[sorted] ?? 0) - (other[sorted] ?? 0)),
  );
  const frame = toDataFrame({
    fields: names.map((name) => {
      const heading = organized.renameByName[name];
      const override = panel.fieldConfig.overrides.find(({ matcher }) => matcher.options === heading);
      const number = name.startsWith('Value');
      return {
        name: heading,
        type: number ? FieldType.number : FieldType.string,
        values: ordered.map((row) => row[name] ?? null),
        config: {
          ...panel.fieldConfig.defaults,
          ...(number && { unit: override.properties[0].value }),
          custom: { ...panel.fieldConfig.defaults.custom, filterable: false },
        },
      };
    }),
  });
  frame.fields.forEach(withDisplay);
  return frame;
}
