// What a board's JSON must be, made of Grafana's own types.

import type * as grafana from '@grafana/schema';
import type * as heatmap from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as timeline from '@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen';
import type * as table from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type * as timeseries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

/**
 * JSON has the values of an enum, not its names. They are compared as text, because the compiler
 * takes any number for an enum of numbers.
 */
type Plain<T> = T extends string
  ? `${T}`
  : T extends number
    ? `${number}` extends `${T}`
      ? number
      : `${T}` extends `${infer N extends number}`
        ? N
        : never
    : T extends Array<infer E>
      ? Array<Plain<E>>
      : T extends object
        ? { [K in keyof T]: Plain<T[K]> }
        : T;

/** The Prometheus data source publishes no type of its query in the schema; this is its form. */
interface Query {
  datasource: grafana.DataSourceRef;
  editorMode: 'code' | 'builder';
  expr: string;
  format: 'time_series' | 'table' | 'heatmap';
  instant: boolean;
  legendFormat: string;
  range: boolean;
  refId: string;
}

/** What that data source reads of an annotation, beside the target. */
interface Annotation extends Omit<grafana.AnnotationQuery, 'target'> {
  target: Pick<Query, 'expr' | 'refId'> & { interval: string };
  titleFormat: string;
  textFormat: string;
  tagKeys: string;
}

type Defaults<Custom> = Omit<grafana.FieldConfig, 'custom'> & { custom?: Custom };

type Panel<Type extends string, Options, Custom> = Plain<
  Omit<grafana.Panel, 'type' | 'options' | 'fieldConfig' | 'targets'> & {
    type: Type;
    options: Options;
    fieldConfig: Omit<grafana.FieldConfigSource, 'defaults'> & { defaults: Defaults<Custom> };
    targets: Query[];
  }
>;

export type Row = Plain<grafana.RowPanel>;
export type Stat = Panel<'stat', stat.Options, Record<string, never>>;
export type Timeseries = Panel<'timeseries', timeseries.Options, timeseries.FieldConfig>;
export type Heatmap = Panel<'heatmap', heatmap.Options, heatmap.FieldConfig>;
export type StateTimeline = Panel<'state-timeline', timeline.Options, timeline.FieldConfig>;
export type Table = Panel<'table', table.Options, Partial<table.FieldConfig>>;

/** The board around its panels, which are compared one by one. */
export type Frame = Plain<
  Omit<grafana.Dashboard, 'annotations' | 'panels'> & {
    annotations: { list: Annotation[] };
    panels: [];
  }
>;
