-- Scores of evaluations beside the loss, and the checkpoint of the best one.

-- The list of lorafleet.v1.Score as JSON.
alter table metric_points add column eval_scores jsonb not null default '[]';

-- Of the best evaluation so far: the keep rule leaves it alone.
alter table checkpoints add column best boolean not null default false;
