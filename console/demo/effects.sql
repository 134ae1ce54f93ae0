-- What the shop's handlers left behind, one row per effect as it stands: their own rows, and the mails by their key.
SELECT event_id, handler FROM effects
UNION ALL
SELECT idempotency_key::uuid, CASE subject WHEN 'Welcome' THEN 'send_welcome' ELSE 'send_invoice' END FROM mails
