-- epoch: an engine that is not the one before may have lost the last ids and fences: none of them is assigned again.
-- ARGV[5]: the engine's replication id.
-- Replies `same` or `changed`. May happen twice.
local before = call('HGET', META, 'replid')
if before == ARGV[5] then return {'same'} end
call('HSET', META, 'replid', ARGV[5])
if before then
    call('HSET', META, 'last', text(math.max(meta('last'), stamp) + 10000000))
    add('fence', 1000000)
end
return {'changed'}
