// pg-boss as in pg_boss.js, but each job is fetched and completed by itself, by as many loops as there are clients.
process.env.BATCH = "1";
require("./pg_boss.js");
