-- forget_before: forgets those of the next 512 jobs in a list of an owner that are stamped before a time. ARGV[5..]:
-- owner, the time, the list (`p` or `d`), the id after which to continue. From the first call for `d` to the last, or
-- for a minute, a failed delivery does not restore a job; the last call also removes the jobs in delivery.
-- Replies `forgotten`, and the id after which to continue, if there is more.
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
