-- forget_before: forgets the jobs of an owner that are stamped before a moment, of the next 512 of one list.
-- ARGV[5..]: owner, the moment, the list (`p` or `d`), the id behind which to go on.
-- Replies `forgotten`, and where to go on, if there is more.
local owner, before, list = ARGV[5], tonumber(ARGV[6]), ARGV[7]
local ids = call('ZRANGEBYSCORE', P .. list .. ':' .. owner, '(' .. ARGV[8], '+inf', 'LIMIT', 0, 512)
for _, id in ipairs(ids) do
    local j = job(id, 'c', 'f', 'b', 'w')
    if tonumber(list == 'p' and j.c or j.f) < before then
        call('ZREM', P .. list .. ':' .. owner, id)
        if list == 'p' then
            call('HSET', P .. 'j:' .. id, 'u', '1')
            ring(id, j)
        else
            call('ZREM', P .. 'e', id)
            remove(id, j.b)
        end
    end
end
return reply({'forgotten', #ids == 512 and ids[512] or nil})
