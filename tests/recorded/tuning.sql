-- The study of that tuning, as Optuna kept it.

INSERT INTO studies (study_id, study_name) VALUES
(1, 'resfool mlp digits a25d980ce4e9');

INSERT INTO study_directions (study_direction_id, direction, study_id, objective) VALUES
(1, 'MAXIMIZE', 1, 0);

INSERT INTO study_user_attributes (study_user_attribute_id, study_id, key, value_json) VALUES
(1, 1, 'run_id', '"8bbfed65f7fe438093899c5f9b02b744"'),
(2, 1, 'driver', '{"host": "elsewhere", "pid": 2314, "created": 1795691650.58}');

INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) VALUES
(1, 0, 1, 'COMPLETE', '2026-11-26 11:14:16.125880', '2026-11-26 11:14:30.157454'),
(2, 1, 1, 'COMPLETE', '2026-11-26 11:14:30.170197', '2026-11-26 11:14:31.570473');

INSERT INTO trial_params (param_id, trial_id, param_name, param_value, distribution_json) VALUES
(1, 1, 'learning_rate', 0.004430375245218269, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.1, "log": true}}'),
(2, 2, 'learning_rate', 0.013981961408994055, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.1, "log": true}}');

INSERT INTO trial_values (trial_value_id, trial_id, objective, value, value_type) VALUES
(1, 1, 0, 0.26, 'FINITE'),
(2, 2, 0, 0.42, 'FINITE');

INSERT INTO trial_intermediate_values (trial_intermediate_value_id, trial_id, step, intermediate_value, intermediate_value_type) VALUES
(1, 1, 2, 0.14, 'FINITE'),
(2, 1, 4, 0.17, 'FINITE'),
(3, 1, 6, 0.16, 'FINITE'),
(4, 1, 8, 0.15, 'FINITE'),
(5, 1, 10, 0.15, 'FINITE'),
(6, 1, 12, 0.15, 'FINITE'),
(7, 1, 14, 0.19, 'FINITE'),
(8, 1, 16, 0.25, 'FINITE'),
(9, 1, 18, 0.25, 'FINITE'),
(10, 1, 20, 0.26, 'FINITE'),
(11, 2, 2, 0.13, 'FINITE'),
(12, 2, 4, 0.2, 'FINITE'),
(13, 2, 6, 0.25, 'FINITE'),
(14, 2, 8, 0.27, 'FINITE'),
(15, 2, 10, 0.28, 'FINITE'),
(16, 2, 12, 0.21, 'FINITE'),
(17, 2, 14, 0.29, 'FINITE'),
(18, 2, 16, 0.37, 'FINITE'),
(19, 2, 18, 0.43, 'FINITE'),
(20, 2, 20, 0.42, 'FINITE');
