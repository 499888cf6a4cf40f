-- submit: accepts a job. ARGV[5..]: owner, keep (1 or 0), lane, lines, message or spool, footprint of the record,
-- footprint in all, capacity, reserve, places in the queue, workers, key, fingerprint, footprint of the key.
-- Replies `new ID`, `known ID`, `reused`, or why not: `large`, `full`, `queue`, `keys`; then nothing of it is kept.
local owner, keep, lane, lines, message, spool = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local base, footprint, capacity = ARGV[11], tonumber(ARGV[12]), tonumber(ARGV[13])
local reserve, places, workers = tonumber(ARGV[14]), tonumber(ARGV[15]), tonumber(ARGV[16])
local key, fingerprint, key_size = ARGV[17], ARGV[18], tonumber(ARGV[19])

local function refuse(why, id)
    if spool ~= '' then call('UNLINK', spool) end
    return reply({why, id})
end

if key ~= '' then
    local known = call('HGET', P .. 'k:' .. owner, key)
    if known then
        local own, id = string.match(known, '^(%x+) (%d+)$')
        if own ~= fingerprint then return refuse('reused') end
        mark(id)
        return refuse('known', id)
    end
    if meta('keybytes') + key_size > math.floor(capacity / 4) then return refuse('keys') end
end
local wanted = footprint + key_size + reserve
if wanted > capacity then return refuse('large') end
if meta('bytes') - meta('logbytes') + wanted > capacity then return refuse('full') end
local asleep = call('ZCARD', P .. 'ws')
local waiting = meta('waiting') + call('ZCARD', P .. 'w') + math.max(0, asleep - workers)
if waiting >= places then return refuse('queue') end
if spool ~= '' and call('EXISTS', spool) == 0 then return reply({'spool'}) end
make_room(wanted, capacity)

local id = text(math.max(stamp, meta('last') + 1))
call('HSET', META, 'last', id)
call('HSET', P .. 'j:' .. id, 's', 'q', 'o', owner, 'l', lane, 'b', text(footprint), 'base', base,
    'c', text(stamp), 'n', '0')
call('SET', P .. 'n:' .. id, lines)
put(P .. 'q:' .. id, message, spool)
call('ZADD', P .. 'l:' .. lane, id, id)
if keep == '1' then
    call('ZADD', P .. 'p:' .. owner, id, id)
else
    call('HSET', P .. 'j:' .. id, 'u', '1')
end
add('bytes', footprint + key_size)
add('waiting', 1)
if key ~= '' then
    call('HSET', P .. 'k:' .. owner, key, fingerprint .. ' ' .. id)
    call('ZADD', P .. 'ke', text(age()), owner .. '\n' .. key)
    call('HINCRBY', P .. 'kb', owner, text(key_size))
    add('keybytes', key_size)
end
wake(lane)
return reply({'new', id})
