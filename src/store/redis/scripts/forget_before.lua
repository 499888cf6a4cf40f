-- forget_before: forgets the jobs of an owner that are stamped before a moment, of the next 512 of one list.
-- ARGV[5..]: owner, the moment, the list (`p` or `d`), the id behind which to go on. From the first of `d` to the last,
-- or for a minute, a delivery that fails does not bring a job back; with the last go those in delivery.
-- Replies `forgotten`, and where to go on, if there is more.
local owner, before, list = ARGV[5], tonumber(ARGV[6]), ARGV[7]
local is_results = list == 'd'
if is_results and ARGV[8] == '0' then
    call('HSET', P .. 'hb', owner, ARGV[6] .. ' ' .. text(now + 60000000))
end
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
if is_results and #ids < 512 then
    call('HDEL', P .. 'hb', owner)
    for _, id in ipairs(call('ZRANGE', P .. 'v:' .. owner, 0, -1)) do
        local j = job(id, 'f', 'b', 'i')
        if tonumber(j.f) < before then
            call('ZREM', P .. 'v:' .. owner, id)
            call('SREM', P .. 'dlv:' .. j.i, id)
            remove(id, j.b)
        end
    end
end
return reply({'forgotten', #ids == 512 and ids[512] or nil})
