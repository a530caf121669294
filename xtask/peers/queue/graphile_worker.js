// graphile-worker: jobs added one by one by several clients, run one by one with the same concurrency.
// usage: node graphile_worker.js URL JOBS CLIENTS; prints one JSON object.
const { Pool } = require("pg");
const { run, makeWorkerUtils, Logger } = require("graphile-worker");
const [url, jobs, clients] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];

async function main() {
  const pgPool = new Pool({ connectionString: url, max: 40 });
  const logger = new Logger(() => () => {});
  const utils = await makeWorkerUtils({ pgPool, logger });
  await utils.migrate();
  const runner = await run({
    pgPool, logger, concurrency: clients, noHandleSignals: true, pollInterval: 100, taskList: { nothing: async () => {} },
  });
  const start = process.hrtime.bigint();
  let next = 0;
  const client = async () => { while (next < jobs) await utils.addJob("nothing", { number: next++ }); };
  await Promise.all(Array.from({ length: clients }, client));
  const sent = process.hrtime.bigint();
  const left = async () => Number((await pgPool.query("select count(*) from graphile_worker.jobs")).rows[0].count);
  while ((await left()) > 0) await new Promise((wake) => setTimeout(wake, 5));
  const seconds = Number(process.hrtime.bigint() - start) / 1e9;
  console.log(JSON.stringify({ jobs_per_s: jobs / seconds, submitted_per_s: jobs / (Number(sent - start) / 1e9) }));
  await runner.stop();
  await utils.release();
  await pgPool.end();
}
main().catch((error) => { console.error(error); process.exit(1); });
