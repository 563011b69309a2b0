// Asks a Prometheus what every panel of a board shows, as Grafana would.

const SECONDS = { ms: 0.001, s: 1, m: 60, h: 3600, d: 86400 };

function seconds(duration) {
  return [...duration.matchAll(/(\d+)(ms|[smhd])/g)].reduce(
    (sum, [, number, unit]) => sum + number * SECONDS[unit],
    0,
  );
}

async function ask(prometheus, path, parameters) {
  const url = new URL(`api/v1/${path}`, prometheus.endsWith('/') ? prometheus : `${prometheus}/`);
  url.search = new URLSearchParams(parameters);
  const answer = await (await fetch(url)).json();
  if (answer.status !== 'success') throw new Error(`${parameters.query}: ${answer.error}`);
  return answer.data;
}

/** Returns how often the slowest of streamqueue's targets is scraped, in seconds. */
async function scrapeInterval(prometheus) {
  const { activeTargets } = await ask(prometheus, 'targets', { state: 'active' });
  return Math.max(1, ...activeTargets.map((target) => seconds(target.scrapeInterval ?? '15s')));
}

/** Returns { range, step, results }: for each panel's id, the results of its targets. */
export async function answers(prometheus, board, end, range) {
  const scrape = await scrapeInterval(prometheus);
  const results = {};
  for (const panel of board.panels.filter((each) => each.type !== 'row')) {
    const points = panel.maxDataPoints ?? 250;
    const step = Math.max(Math.ceil(range / points), scrape);
    const values = {
      __rate_interval: `${Math.max(step + scrape, 4 * scrape)}s`,
      __interval: `${step}s`,
      __range: `${range}s`,
      job: '.+',
      queue: '.+',
      instance: '.+',
    };
    results[panel.id] = await Promise.all(
      panel.targets.map(async (target) => {
        const query = target.expr.replace(/\$(\w+)/g, (_, name) => values[name]);
        const { result } = target.instant
          ? await ask(prometheus, 'query', { query, time: end })
          : await ask(prometheus, 'query_range', { query, start: end - range, end, step });
        return { target, step, result };
      }),
    );
  }
  return { end, range, results };
}
