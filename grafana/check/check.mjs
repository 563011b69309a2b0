// Compares the committed boards with Grafana's published types (@grafana/schema) and its list of
// units (@grafana/data). `--self-test` plants faults, each of which must be found.

import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

// Required, not imported: its ES modules do not load in Node (moment-timezone has no named exports).
// And it asks a browser for its language, which Node 20 does not have.
globalThis.navigator ??= { languages: ['en'], language: 'en' };
const { getValueFormats } = createRequire(import.meta.url)('@grafana/data');

const HERE = dirname(fileURLToPath(import.meta.url));
const BUILT = join(HERE, 'built');
const DASHBOARDS = join(HERE, '..', 'dashboards');
const TYPES = {
  row: 'Row',
  stat: 'Stat',
  timeseries: 'Timeseries',
  heatmap: 'Heatmap',
  'state-timeline': 'StateTimeline',
  table: 'Table',
};
const UNITS = new Set(getValueFormats().flatMap((kind) => kind.submenu.map((unit) => unit.value)));

/** Yields a piece of TypeScript for the board and each panel, so that a fault names its place. */
function* pieces(board) {
  yield { place: 'board', type: 'Frame', value: { ...board, panels: [] } };
  for (const panel of board.panels) {
    const type = TYPES[panel.type];
    if (!type) throw new Error(`no type for a panel of the kind ${panel.type}: add it to types.ts`);
    yield { place: `${panel.id}`, type, value: panel };
  }
}

/** Returns what the compiler finds: a list of { place, fault }, where place is `board/panel`. */
function typeFaults(boards) {
  rmSync(BUILT, { recursive: true, force: true });
  for (const [name, board] of Object.entries(boards)) {
    mkdirSync(join(BUILT, name), { recursive: true });
    for (const { place, type, value } of pieces(board)) {
      const text = JSON.stringify(value, null, 2);
      writeFileSync(
        join(BUILT, name, `${place}.ts`),
        `import type { ${type} } from '../../types';\nexport const it: ${type} = ${text};\n`,
      );
    }
  }
  const tsc = join(HERE, 'node_modules', '.bin', 'tsc');
  const { stdout, stderr, status, error } = spawnSync(tsc, ['--pretty', 'false', '-p', HERE], {
    cwd: HERE,
    encoding: 'utf8',
  });
  if (error) throw error;
  const faults = [];
  for (const line of stdout.split('\n').filter((each) => each.includes('error TS'))) {
    const found = /^built\/(.+)\.ts\((\d+),\d+\): error TS\d+: (.*)$/.exec(line);
    if (!found) throw new Error(`tsc: ${line}`);
    faults.push({ place: found[1], fault: found[3] });
  }
  if (status && !faults.length) throw new Error(`tsc: ${stdout}${stderr}`);
  return faults;
}

function* units(node) {
  for (const [key, value] of Object.entries(node ?? {})) {
    if (key === 'unit') yield value;
    else if (key === 'id' && value === 'unit') yield node.value;
    else if (typeof value === 'object') yield* units(value);
  }
}

function unitFaults(boards) {
  return Object.entries(boards).flatMap(([name, board]) =>
    board.panels.flatMap((panel) =>
      [...units(panel)]
        .filter((unit) => !UNITS.has(unit))
        .map((unit) => ({ place: `${name}/${panel.id}`, fault: `${unit} is no unit of Grafana's` })),
    ),
  );
}

function committed() {
  const files = readdirSync(DASHBOARDS).filter((name) => name.endsWith('.json'));
  return Object.fromEntries(
    files.map((name) => [
      name.replace('.json', ''),
      JSON.parse(readFileSync(join(DASHBOARDS, name), 'utf8')),
    ]),
  );
}

function compare() {
  const boards = committed();
  const faults = [...typeFaults(boards), ...unitFaults(boards)];
  for (const { place, fault } of faults) {
    const [name, id] = place.split('/');
    const panel = boards[name].panels.find((each) => `${each.id}` === id);
    console.error(`${name}: ${panel ? `panel ${id} (${panel.title})` : id}: ${fault}`);
  }
  const panels = Object.values(boards).flatMap((board) => board.panels).length;
  if (!faults.length) console.log(`${Object.keys(boards).length} boards, ${panels} panels: as Grafana's types have them`);
  return faults.length ? 1 : 0;
}

/** Plants one fault a board, in copies; a fault nobody finds is an error. */
function selfTest() {
  const overview = committed()['streamqueue-overview'];
  const first = (board, type) => board.panels.find((panel) => panel.type === type);
  const planted = {
    'a misspelt key of a panel': (board) => {
      const panel = first(board, 'stat');
      panel.gridpos = panel.gridPos;
    },
    'a place that is text': (board) => (first(board, 'stat').gridPos.w = '3'),
    'a legend mode there is not': (board) =>
      (first(board, 'timeseries').options.legend.displayMode = 'tabel'),
    'an option of another panel': (board) => (first(board, 'table').options.legend = {}),
    'a misspelt option of the lines': (board) =>
      (first(board, 'timeseries').fieldConfig.defaults.custom.fillOpacitiy = 1),
    'thresholds without a mode': (board) =>
      delete first(board, 'stat').fieldConfig.defaults.thresholds.mode,
    'a colour mode of the heatmap there is not': (board) =>
      (first(board, 'heatmap').options.color.mode = 'rainbow'),
    'a variable read again at a time there is not': (board) =>
      (board.templating.list[1].refresh = 3),
    'an annotation of the old form': (board) =>
      (board.annotations.list[0] = { ...board.annotations.list[0], expr: 'up', target: undefined }),
    'a link without its tooltip': (board) => delete board.links[0].tooltip,
    'a unit there is not': (board) => (first(board, 'stat').fieldConfig.defaults.unit = 'jobs'),
    'a unit of a column there is not': (board) =>
      (first(board, 'table').fieldConfig.overrides[0].properties[0].value = 'seconds'),
  };
  const boards = { untouched: overview };
  for (const [name, plant] of Object.entries(planted)) {
    boards[name] = structuredClone(overview);
    plant(boards[name]);
  }
  const found = new Set(
    [...typeFaults(boards), ...unitFaults(boards)].map(({ place }) => place.split('/')[0]),
  );
  const missed = Object.keys(planted).filter((name) => !found.has(name));
  for (const name of missed) console.error(`not found: ${name}`);
  if (found.has('untouched')) console.error('a fault in the board without one');
  const right = !missed.length && !found.has('untouched');
  if (right) console.log(`${Object.keys(planted).length} planted faults: all found`);
  return right ? 0 : 1;
}

const [flag, ...more] = process.argv.slice(2);
if (more.length || (flag && flag !== '--self-test')) {
  console.error('usage: node check.mjs [--self-test]');
  process.exit(2);
}
process.exitCode = flag ? selfTest() : compare();
