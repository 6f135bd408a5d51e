CREATE TABLE requests (
	number INTEGER NOT NULL, 
	id VARCHAR NOT NULL, 
	app VARCHAR NOT NULL, 
	arguments JSON NOT NULL, 
	media JSON NOT NULL, 
	ready BOOLEAN NOT NULL, 
	status VARCHAR NOT NULL, 
	priority INTEGER NOT NULL, 
	idempotency_key VARCHAR, 
	digest VARCHAR NOT NULL, 
	base_url VARCHAR NOT NULL, 
	webhook_url TEXT, 
	created DOUBLE NOT NULL, 
	started DOUBLE, 
	ended DOUBLE, 
	start_timeout DOUBLE, 
	cancel BOOLEAN NOT NULL, 
	attempts INTEGER NOT NULL, 
	lease_server VARCHAR, 
	lease_until DOUBLE, 
	token VARCHAR, 
	prompt_id VARCHAR, 
	workflow JSON, 
	result JSON, 
	sync_mode BOOLEAN NOT NULL, 
	error TEXT, 
	error_type VARCHAR, 
	error_status INTEGER, 
	error_detail JSON, 
	safety VARCHAR, 
	read DOUBLE, 
	gone BOOLEAN NOT NULL, 
	PRIMARY KEY (number), 
	UNIQUE (app, idempotency_key), 
	UNIQUE (id)
);
CREATE INDEX requests_in_order ON requests (status, priority, number);
CREATE TABLE uploads (
	id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	content_type VARCHAR NOT NULL, 
	multipart VARCHAR, 
	token VARCHAR NOT NULL, 
	created DOUBLE NOT NULL, 
	until DOUBLE NOT NULL, 
	keep_seconds DOUBLE, 
	digest VARCHAR, 
	size INTEGER, 
	PRIMARY KEY (id)
);
CREATE TABLE upload_bearers (
	token VARCHAR NOT NULL, 
	until DOUBLE NOT NULL, 
	PRIMARY KEY (token)
);
CREATE TABLE webhook_deliveries (
	request_id VARCHAR NOT NULL, 
	url TEXT NOT NULL, 
	body JSON NOT NULL, 
	state VARCHAR NOT NULL, 
	tries INTEGER NOT NULL, 
	due DOUBLE NOT NULL, 
	last_error TEXT, 
	PRIMARY KEY (request_id)
);
CREATE INDEX ix_webhook_deliveries_state ON webhook_deliveries (state);
CREATE TABLE logs (
	id INTEGER NOT NULL, 
	request_id VARCHAR NOT NULL, 
	timestamp DOUBLE NOT NULL, 
	level VARCHAR NOT NULL, 
	source VARCHAR NOT NULL, 
	message TEXT NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(request_id) REFERENCES requests (id) ON DELETE CASCADE
);
CREATE INDEX ix_logs_request_id ON logs (request_id);
CREATE TABLE upload_parts (
	upload VARCHAR NOT NULL, 
	number INTEGER NOT NULL, 
	etag VARCHAR NOT NULL, 
	size INTEGER NOT NULL, 
	PRIMARY KEY (upload, number), 
	FOREIGN KEY(upload) REFERENCES uploads (id) ON DELETE CASCADE
);

INSERT INTO requests (number, id, app, arguments, media, ready, status, priority, digest, base_url, created, started, ended, cancel, attempts, result, sync_mode, gone)
VALUES (1, 'ended', 'fal-ai/ltx-2.3-22b/audio-to-video', '{"prompt": "first"}', '{"audio_url": "ltx_a2v_api/a.wav"}', 1, 'COMPLETED', 0, 'd', 'http://host', 1764000000.0, 1764000001.0, 1764000002.0, 0, 1, '{"seed": 7}', 0, 0);
INSERT INTO requests (number, id, app, arguments, media, ready, status, priority, digest, base_url, created, start_timeout, cancel, attempts, lease_server, lease_until, sync_mode, gone)
VALUES (2, 'waits', 'fal-ai/ltx-2.3-22b/audio-to-video', '{"prompt": "later"}', '{"audio_url": "ltx_a2v_api/a.wav", "image_url": "ltx_a2v_api/b.png"}', 1, 'IN_PROGRESS', 0, 'e', 'http://host', 1764000000.0, 60.0, 0, 1, 'dead:1:ff', 1764000000.0, 0, 0);
INSERT INTO requests (number, id, app, arguments, media, ready, status, priority, digest, base_url, created, ended, cancel, attempts, sync_mode, gone)
VALUES (3, 'gone', 'fal-ai/ltx-2.3-22b/audio-to-video', '{"prompt": "past"}', '{"audio_url": "ltx_a2v_api/c.wav"}', 1, 'COMPLETED', 0, 'f', 'http://host', 1764000000.0, 1764000002.0, 0, 1, 0, 1);
INSERT INTO logs (request_id, timestamp, level, source, message) VALUES ('ended', 1764000001.0, 'INFO', 'USER', 'Started');
INSERT INTO webhook_deliveries (request_id, url, body, state, tries, due) VALUES ('ended', 'http://host/hook', '{}', 'DELIVERED', 1, 1764000003.0);
