-- A job's costs are written as often as its row: vacuumed by what died, as in 0010, or dead rows grow with the history.
alter table job_costs set (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.002, autovacuum_vacuum_threshold = 5000);
