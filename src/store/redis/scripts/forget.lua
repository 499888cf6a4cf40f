-- forget: removes a job's record; the work goes on. ARGV[5..]: owner, id.
-- Replies `forgotten` or `unknown`; if the result was collected, the log is removed too.
local owner, id = ARGV[5], ARGV[6]
local j = job(id, 's', 'o', 'u', 'b', 'w')
if j.o ~= owner or j.u or is_gone(owner, id) or j.s == 'v' then return reply({'unknown'}) end
if j.s == 'c' then
    drop_log(id)
    return reply({'unknown'})
end
if j.s == 'd' then
    call('ZREM', P .. 'd:' .. owner, id)
    call('ZREM', P .. 'e', id)
    remove(id, j.b)
else
    call('ZREM', P .. 'p:' .. owner, id)
    call('HSET', P .. 'j:' .. id, 'u', '1')
    ring(id, j)
end
return reply({'forgotten'})
