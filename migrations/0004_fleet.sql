-- Whether a silent worker was seen to close its connection: its last stream ended, as a live coordinator saw, and none
-- began since.
alter table worker_leases add column closed boolean not null default false;
