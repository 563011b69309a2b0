// Draws both boards into grafana/*.png, with Grafana's UI components in a headless Chromium:
//
//     node picture.mjs http://127.0.0.1:9090 [minutes to show, 15 by default] [end, as unix time]

import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { build } from 'esbuild';
import { answers } from './answers.mjs';

const HERE = dirname(fileURLToPath(import.meta.url));
const GRAFANA = join(HERE, '..');
const BOARDS = ['overview', 'consumers'];
const WIDTH = 1600;

async function draw(name, prometheus, end, range, folder) {
  const file = join(GRAFANA, 'dashboards', `streamqueue-${name}.json`);
  const board = JSON.parse(readFileSync(file, 'utf8'));
  const drawn = { board, answered: await answers(prometheus, board, end, range) };
  const bottom = Math.max(...board.panels.map(({ gridPos }) => gridPos.y + gridPos.h));
  const page = join(folder, `${name}.html`);
  writeFileSync(
    page,
    `<!doctype html><meta charset="utf-8"><body><div id="root"></div>
<script>window.drawn = ${JSON.stringify(drawn).replaceAll('<', '\\u003c')}</script>
<link rel="stylesheet" href="page.css"><script src="page.js"></script>`,
  );
  const picture = join(GRAFANA, `${name}.png`);
  rmSync(picture, { force: true });
  const { stderr, error } = spawnSync(
    'chromium',
    [
      ...['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run'],
      ...['--disable-background-networking', '--disable-component-update', '--disable-sync'],
      `--user-data-dir=${join(folder, `profile-${name}`)}`,
      '--allow-file-access-from-files', // the icons
      '--hide-scrollbars',
      '--enable-logging=stderr', // what the page says, its errors among it
      `--window-size=${WIDTH},${56 + bottom * 38 + 8}`,
      '--virtual-time-budget=20000',
      `--screenshot=${picture}`,
      pathToFileURL(page).href,
    ],
    { encoding: 'utf8', timeout: 120_000 },
  );
  if (error) throw error;
  const failed = stderr.split('\n').filter((line) => /CONSOLE.*Error/.test(line));
  if (failed.length) throw new Error(`the page failed:\n${failed.join('\n')}`);
  // A quarter of the size, and nobody sees the difference.
  spawnSync('pngquant', ['--force', '--output', picture, '256', picture]);
  const size = statSync(picture, { throwIfNoEntry: false })?.size;
  if (!size) throw new Error(`Chromium drew nothing:\n${stderr}`);
  console.log(`grafana/${name}.png: ${Math.ceil(size / 1000)} kB`);
}

const [prometheus, minutes = '15', end = `${Math.floor(Date.now() / 1000)}`] = process.argv.slice(2);
if (!URL.canParse(prometheus) || !(Number(minutes) > 0) || !(Number(end) > 0)) {
  console.error('usage: node picture.mjs http://HOST:PORT [MINUTES] [END, as unix time]');
  process.exit(2);
}
const folder = mkdtempSync(join(tmpdir(), 'streamqueue-picture-'));
try {
  await build({
    entryPoints: [join(HERE, 'page.jsx')],
    outfile: join(folder, 'page.js'),
    bundle: true,
    minify: true,
    jsx: 'automatic',
    define: { 'process.env.NODE_ENV': '"production"', global: 'window' },
    loader: { '.svg': 'dataurl', '.woff2': 'empty', '.ttf': 'empty' },
    logLevel: 'error',
  });
  for (const name of BOARDS) await draw(name, prometheus, Number(end), Number(minutes) * 60, folder);
} catch (error) {
  const why = error.message === 'fetch failed' ? `no answer from ${prometheus}` : error.message;
  console.error(`no picture: ${why}`);
  process.exitCode = 1;
} finally {
  rmSync(folder, { recursive: true, force: true });
}
