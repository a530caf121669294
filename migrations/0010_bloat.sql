-- Hot rows: room for updates in their pages, and vacuum by what died, not by how much history there is.

-- A job is written some three times in its life, an attempt and a place twice, a checkpoint seldom; what they were before
-- is dead at once. By default a fifth of a table may be dead, which of ten million finished jobs is two million rows.
alter table jobs set (autovacuum_vacuum_scale_factor = 0.002, autovacuum_vacuum_threshold = 5000);
alter table attempts set (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.002, autovacuum_vacuum_threshold = 5000);
alter table places set (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.002, autovacuum_vacuum_threshold = 5000);
alter table checkpoints set (autovacuum_vacuum_scale_factor = 0.002, autovacuum_vacuum_threshold = 5000);

-- What a job says is written once and is most of its row: out of line, updates of the row do not write it again.
alter table jobs alter column spec set storage external;
alter table jobs set (toast_tuple_target = 256);
