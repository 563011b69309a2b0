// Grafana's components. Required, not imported: their ES modules take a CommonJS module for its
// default export, which then is no component.

export const { FieldType, createTheme, dateTime, getDisplayProcessor, toDataFrame } =
  require('@grafana/data');
export const { BigValue, GlobalStyles, PanelChrome, Table, ThemeContext, TimeSeries } =
  require('@grafana/ui');
