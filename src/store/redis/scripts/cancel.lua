-- cancel: ends a waiting job with 410, and stops a running one. ARGV[5..]: owner, id, message of the 410, its
-- footprint, ending.
-- Replies `ended LANE CREATED STARTED ATTEMPTS`, `running INCARNATION`, `done` (no effect) or `unknown`.
local owner, id = ARGV[5], ARGV[6]
local j = job(id, 's', 'o', 'u', 'b', 'base', 'w', 'l', 'i', 'x', 'c', 't', 'm')
if j.o ~= owner or j.u or is_gone(owner, id) then return reply({'unknown'}) end
if j.s == 'd' then return reply({'done'}) end
if j.s == 'r' then
    if not j.x then
        call('HSET', P .. 'j:' .. id, 'x', '1')
        call('SET', P .. 'r:' .. id, ARGV[7])
        call('SADD', P .. 'x:' .. j.i, id)
        tell(j.i, 'cancel ' .. id)
    end
    return reply({'running', j.i})
end
if j.s == 'q' then
    call('ZREM', P .. 'l:' .. j.l, id)
    add('waiting', -1)
elseif j.s == 'w' then
    call('ZREM', P .. 'w', id)
    call('ZREM', P .. 'ws', id)
else
    return reply({'unknown'})
end
fail(id, j, ARGV[7], ARGV[8], ARGV[9])
return reply({'ended', j.l, j.c, j.t or '', j.m or '0'})
