"""procrastinate: jobs deferred one by one by several clients, run with the same concurrency.

usage: python procrastinate_peer.py URL JOBS CLIENTS; prints one JSON object."""

import asyncio
import json
import sys
import time

import procrastinate


async def main(url: str, jobs: int, clients: int) -> None:
    connector = procrastinate.PsycopgConnector(conninfo=url, min_size=4, max_size=40)
    app = procrastinate.App(connector=connector)

    @app.task(name="nothing")
    async def nothing(number: int) -> None:
        pass

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        worker = asyncio.create_task(
            app.run_worker_async(concurrency=clients, install_signal_handlers=False, fetch_job_polling_interval=0.1)
        )
        numbers = iter(range(jobs))
        start = time.perf_counter()

        async def client() -> None:
            for number in numbers:
                await nothing.defer_async(number=number)

        await asyncio.gather(*(client() for _ in range(clients)))
        sent = time.perf_counter() - start
        left = "select count(*) as left from procrastinate_jobs where status in ('todo', 'doing')"
        while (await connector.execute_query_one_async(left))["left"] > 0:
            await asyncio.sleep(0.005)
        seconds = time.perf_counter() - start
        print(json.dumps({"jobs_per_s": jobs / seconds, "submitted_per_s": jobs / sent}), flush=True)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)


asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
