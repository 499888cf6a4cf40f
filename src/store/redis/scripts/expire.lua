-- expire: removes what is older than a time by the clock that decides when results expire, at most 512 of each:
-- results and keys of removed jobs (`results`), or logs of collected jobs (`logs`). ARGV[5..]: which, the time if the
-- caller's clock counts (or empty), the age in microseconds if the engine's does.
-- Replies `expired`, how many results, and `more` if there is more.
local limit = ARGV[6] ~= '' and tonumber(ARGV[6]) or age() - ARGV[7]
local before = '(' .. text(limit)
if ARGV[5] == 'logs' then
    local logs = call('ZRANGEBYSCORE', P .. 'le', '-inf', before, 'LIMIT', 0, 512)
    for _, id in ipairs(logs) do drop_log(id) end
    return reply({'expired', '0', #logs == 512 and 'more' or nil})
end
local ids = call('ZRANGEBYSCORE', P .. 'e', '-inf', before, 'LIMIT', 0, 512)
for _, id in ipairs(ids) do
    local j = job(id, 'o', 'b')
    call('ZREM', P .. 'e', id)
    if j.o then
        call('ZREM', P .. 'd:' .. j.o, id)
        remove(id, j.b)
    end
end
local removed = 0
local keys = call('ZRANGEBYSCORE', P .. 'ke', '-inf', before, 'LIMIT', 0, 512)
for _, member in ipairs(keys) do
    local owner, key = string.match(member, '^([^\n]*)\n(.*)$')
    local known = call('HGET', P .. 'k:' .. owner, key)
    local id = known and string.match(known, ' (%d+)$')
    local j = id and job(id, 's')
    if j and j.s and j.s ~= 'c' and (j.s ~= 'd' and j.s ~= 'v' or not is_gone(owner, id)) then
        call('ZADD', P .. 'ke', text(limit), member)
    else
        removed = removed + 1
        if known then drop_key(owner, key) else call('ZREM', P .. 'ke', member) end
    end
end
-- Keys that stay are checked again by the next call, for which they are old again: if there is nothing else, this is
-- not `more`.
return reply({'expired', text(#ids), (#ids == 512 or #keys == 512 and removed > 0) and 'more' or nil})
