-- list: ids of an owner's list above an id, ascending. ARGV[5..]: owner, list (`p` or `d`), id, how many at most.
-- Replies the ids. Changes nothing.
return call('ZRANGEBYSCORE', P .. ARGV[6] .. ':' .. ARGV[5], '(' .. ARGV[7], '+inf', 'LIMIT', 0, ARGV[8])
