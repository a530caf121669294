// pg-boss: jobs sent one by one by several clients, fetched and completed in batches as fast as they come.
// usage: node pg_boss.js URL JOBS CLIENTS; prints one JSON object. BATCH in the environment: jobs of one fetch.
const PgBoss = require("pg-boss");
const [url, jobs, clients] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const BATCH = Number(process.env.BATCH ?? 100);
// A pool that each sender and each fetching loop finds a connection in, as the others have.
const LOOPS = BATCH > 1 ? 2 : clients;

async function main() {
  const boss = new PgBoss({ connectionString: url, max: 40, supervise: false, schedule: false });
  boss.on("error", (error) => { throw error; });
  await boss.start();
  await boss.createQueue("bench");
  const start = process.hrtime.bigint();
  let next = 0, done = 0;
  const client = async () => { while (next < jobs) await boss.send("bench", { number: next++ }); };
  const worker = async () => {
    while (done < jobs) {
      const batch = await boss.fetch("bench", { batchSize: BATCH });
      if (batch.length === 0) { await new Promise((wake) => setTimeout(wake, 1)); continue; }
      await boss.complete("bench", batch.map((job) => job.id));
      done += batch.length;
    }
  };
  let sent;
  const sending = Promise.all(Array.from({ length: clients }, client)).then(() => { sent = process.hrtime.bigint(); });
  await Promise.all([sending, ...Array.from({ length: LOOPS }, worker)]);
  const seconds = Number(process.hrtime.bigint() - start) / 1e9;
  console.log(JSON.stringify({ jobs_per_s: jobs / seconds, submitted_per_s: jobs / (Number(sent - start) / 1e9) }));
  await boss.stop({ graceful: false });
}
main().catch((error) => { console.error(error); process.exit(1); });
