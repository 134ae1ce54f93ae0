-- Events of a range that no handler ever got, by name: nobody handles the name, and they have no outcome. Asked once, before
-- their partition goes: it is read as a whole, by no index; outcomes by their primary key.
SELECT e.name, count(*)
  FROM {schema}.event AS e
 WHERE e.created_at >= %(lower)s AND e.created_at < %(upper)s AND e.name NOT IN ('(purged)', '(copy)')
   AND NOT EXISTS (SELECT FROM {schema}.handler AS h WHERE h.event_name = e.name)
   AND NOT EXISTS (SELECT FROM {schema}.delivery AS d WHERE d.event_id = e.id AND d.event_created_at = e.created_at)
 GROUP BY e.name
 ORDER BY e.name
