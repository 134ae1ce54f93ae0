-- Least privilege for the roles that touch the schema at run time. Run by its owner, after `outbox migrate`;
-- `outbox migrate --roles-sql` prints it with the names filled in. Giving none to a role means leaving its block out.

-- {writer}: the application that calls outbox.add. It reads nothing.
GRANT USAGE ON SCHEMA {schema} TO {writer};
GRANT INSERT ON {schema}.event, {schema}.scheduled TO {writer};
GRANT USAGE ON SEQUENCE {schema}.event_seq TO {writer};
GRANT SELECT ON SEQUENCE {schema}.asleep TO {writer};

-- {relay}: outbox relay. It cannot change an event.
GRANT USAGE ON SCHEMA {schema} TO {relay};
GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {relay};
GRANT INSERT, UPDATE, DELETE ON {schema}.tick, {schema}.stream, {schema}.scheduled, {schema}.schedule TO {relay};
GRANT UPDATE ON {schema}.relay, {schema}.handler TO {relay};
GRANT INSERT ON {schema}.event, {schema}.delivery TO {relay};
GRANT USAGE ON SEQUENCE {schema}.event_seq TO {relay};
GRANT SELECT, UPDATE ON SEQUENCE {schema}.asleep TO {relay};

-- {worker}: outbox worker, status, dead, replay, pause, resume and cancel. Its handlers may add events too.
GRANT USAGE ON SCHEMA {schema} TO {worker};
GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {worker};
GRANT INSERT, UPDATE ON {schema}.delivery, {schema}.handler, {schema}.schedule TO {worker};
GRANT INSERT, UPDATE, DELETE ON {schema}.dead_letter, {schema}.worker TO {worker};
GRANT INSERT, DELETE ON {schema}.hold TO {worker};
GRANT INSERT, UPDATE, DELETE ON {schema}.replay TO {worker};
GRANT INSERT ON {schema}.event, {schema}.scheduled, {schema}.audit TO {worker};
GRANT DELETE ON {schema}.scheduled TO {worker};
GRANT USAGE ON SEQUENCE {schema}.event_seq TO {worker};
GRANT SELECT ON SEQUENCE {schema}.asleep TO {worker};

-- {reader}: whoever only looks: outbox.status in an endpoint, outbox status, events, dead and top.
GRANT USAGE ON SCHEMA {schema} TO {reader};
GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {reader};
GRANT SELECT ON SEQUENCE {schema}.asleep TO {reader};
