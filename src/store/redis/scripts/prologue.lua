-- The beginning of every script. KEYS[1]: the prefix of the queue's keys. ARGV[1..4]: the process, the slot of its
-- pool, the number of the operation in that slot (empty for an operation that may happen twice), the caller's clock
-- (empty: the engine's). An operation whose reply was lost is repeated with the same number and happens once: its
-- reply is in the memo. An operation that arrives late, after a higher number, does nothing. All numbers are below
-- 2^53.
local P, PROC, SLOT, NONCE = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local call = redis.call
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
local stamp = ARGV[4] == '' and now or tonumber(ARGV[4])
local META = P .. 'meta'
-- The accounted size of a record, and of a key besides its two copies; how often a job is started at most if it is
-- interrupted each time; how many kept logs an owner has. They equal those of the other stores: `script` tests that.
local RECORD, PLACES, STARTS, LOGS = 480, 224, 3, 64

local function text(number)
    return string.format('%.0f', number)
end

local function memo(slot)
    local kept = call('HGET', P .. 'm:' .. PROC, slot)
    if not kept then return 0 end
    local bar = string.find(kept, '|', 1, true)
    return tonumber(string.sub(kept, 1, bar - 1)), string.sub(kept, bar + 1)
end

if NONCE ~= '' then
    local last, packed = memo(SLOT)
    if last == tonumber(NONCE) then return cmsgpack.unpack(packed) end
    if last > tonumber(NONCE) then return {'stale'} end
end

-- Returns the reply, a list of strings, and stores it in the memo.
local function reply(answer)
    if NONCE ~= '' then
        call('HSET', P .. 'm:' .. PROC, SLOT, NONCE .. '|' .. cmsgpack.pack(answer))
    end
    return answer
end

local function meta(field)
    return tonumber(call('HGET', META, field) or 0)
end

local function add(field, number)
    if number ~= 0 then call('HINCRBY', META, field, text(number)) end
end

local function fence()
    return text(call('HINCRBY', META, 'fence', 1))
end

local function is_living(inc)
    return call('ZSCORE', P .. 'i', inc)
end

-- Returns the clock by which results expire: it stands still while no instance beats, and does not jump. After such a
-- time, it stays at the last beat until the next beat has set it right.
local function age()
    local beat = meta('beat')
    if ARGV[4] == '' and beat ~= 0 and math.abs(now - beat) > meta('lease') then return beat - meta('off') end
    return stamp - meta('off')
end

-- Returns the accounted size of an allocation, as memory::allocated does.
local function allocated(length)
    if length == 0 then return 0 end
    return math.max(32, math.ceil((length + 8) / 16) * 16)
end

-- Returns whether `DELETE all` has forgotten the job.
local function is_gone(owner, id)
    local horizon = call('HGET', P .. 'hz', owner)
    return horizon and tonumber(id) <= tonumber(horizon)
end

-- Returns the named fields of a job, by name.
local function job(id, ...)
    local names, found = {...}, {}
    for n, value in ipairs(call('HMGET', P .. 'j:' .. id, unpack(names))) do found[names[n]] = value end
    return found
end

-- Records that a client learned of a job by its key: the job stays, even if the submission that made it is given up.
local function mark(id)
    if call('EXISTS', P .. 'j:' .. id) == 1 then call('HSET', P .. 'j:' .. id, 'K', '1') end
end

local function tell(inc, message)
    local proc = call('HGET', P .. 'i:' .. inc, 'proc')
    if proc then call('PUBLISH', P .. 'c:' .. proc, message) end
    return proc
end

-- Wakes one instance that found this lane empty.
local function wake(lane)
    for _ = 1, 16 do
        local inc = call('SPOP', P .. 'h:' .. lane)
        if not inc or tell(inc, 'work') then return end
    end
end

-- Notifies those who wait for a job that it is done or gone.
local function ring(id, j)
    if j.w then
        call('HDEL', P .. 'j:' .. id, 'w')
        call('PUBLISH', P .. 'bell', id)
    end
end

-- Removes a job that is no longer in any list.
local function remove(id, bytes)
    call('UNLINK', P .. 'j:' .. id, P .. 'n:' .. id, P .. 'q:' .. id, P .. 'r:' .. id, P .. 'g:' .. id)
    add('bytes', -tonumber(bytes))
end

local function drop_log(id)
    local j = job(id, 'o', 'b')
    call('ZREM', P .. 'le', id)
    if j.o then
        call('ZREM', P .. 'lg:' .. j.o, id)
        add('logbytes', -tonumber(j.b))
        remove(id, j.b)
    end
end

-- Drops the oldest logs of collected jobs until this many more bytes fit, or none is left.
local function make_room(bytes, capacity)
    while meta('bytes') + bytes > capacity do
        local oldest = call('ZRANGE', P .. 'le', 0, 0)[1]
        if not oldest then return end
        drop_log(oldest)
    end
end

-- Removes an idempotency key of an owner.
local function drop_key(owner, key)
    local size = PLACES + 2 * allocated(#key)
    call('HDEL', P .. 'k:' .. owner, key)
    call('ZREM', P .. 'ke', owner .. '\n' .. key)
    if call('HINCRBY', P .. 'kb', owner, -size) <= 0 then call('HDEL', P .. 'kb', owner) end
    add('keybytes', -size)
    add('bytes', -size)
end

-- Stores a message under its key: from the arguments, or from where it was spooled.
local function put(key, message, spool)
    if spool == '' then
        call('SET', key, message)
    else
        call('RENAME', spool, key)
        call('PERSIST', key)
    end
end

-- Puts a job that ran or was delayed into its lane.
local function enter(id, lane)
    call('HSET', P .. 'j:' .. id, 's', 'q')
    call('HDEL', P .. 'j:' .. id, 'i', 'F')
    call('ZADD', P .. 'l:' .. lane, id, id)
    add('waiting', 1)
    wake(lane)
end

-- Ends a job that is no longer in any lane: `r:ID` has its result, of this many bytes with its record, and its log has
-- this many more. If the job is unwanted, nothing of it is kept.
local function done(id, j, ending, bytes, log)
    if j.u or is_gone(j.o, id) then
        call('ZREM', P .. 'p:' .. j.o, id)
        remove(id, j.b)
        return false
    end
    local key, aged = P .. 'j:' .. id, text(age())
    add('bytes', bytes - j.b)
    call('UNLINK', P .. 'q:' .. id)
    call('HDEL', key, 'i', 'F', 'p', 'x', 'z', 'a')
    call('HSET', key, 's', 'd', 'f', text(stamp), 'fa', aged, 'e', ending, 'b', text(bytes), 'lg', log)
    call('ZREM', P .. 'p:' .. j.o, id)
    call('ZADD', P .. 'd:' .. j.o, id, id)
    call('ZADD', P .. 'e', aged, id)
    ring(id, j)
    return true
end

-- Ends a job with an error of deferd's own, for which room was reserved when it was accepted; its log, if one is kept,
-- stays if it fits as well.
local function fail(id, j, message, footprint, ending)
    call('SET', P .. 'r:' .. id, message)
    local log = call('STRLEN', P .. 'g:' .. id)
    local bytes = j.base + footprint
    if bytes + allocated(log) <= tonumber(j.b) then
        bytes = bytes + allocated(log)
    else
        call('UNLINK', P .. 'g:' .. id)
        log = 0
    end
    return done(id, j, ending, bytes, log)
end

-- Puts jobs whose delay is over into their lanes.
local function enter_due()
    for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'w', '-inf', text(now), 'LIMIT', 0, 64)) do
        call('ZREM', P .. 'w', id)
        enter(id, job(id, 'l').l)
    end
end

-- Ends jobs whose delay is over and that have their answer: returns for each its id, lane, ending and times.
local function end_due()
    local ended = {}
    for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'ws', '-inf', text(now), 'LIMIT', 0, 64)) do
        call('ZREM', P .. 'ws', id)
        local j = job(id, 'o', 'b', 'u', 'w', 'e', 'z', 'lg', 'l', 'c', 't', 'm')
        done(id, j, j.e, tonumber(j.z), j.lg)
        for _, part in ipairs({id, j.l, j.e, j.c, j.t or '', j.m or '0'}) do ended[#ended + 1] = part end
    end
    return ended
end

-- Ends the run of a job whose instance is gone: if its route says so, and it may, it runs again; otherwise it is done
-- with 500, or with the 410 of its cancellation.
local function interrupt(inc, id, message, footprint, ending, cancelled)
    local j = job(id, 's', 'o', 'b', 'base', 'u', 'w', 'x', 'a', 'n', 'l', 'i', 'm')
    call('SREM', P .. 'run:' .. inc, id)
    call('SREM', P .. 'x:' .. inc, id)
    if j.s ~= 'r' or j.i ~= inc then return 'gone' end
    if j.a == '1' and tonumber(j.n) < STARTS and not j.x then
        enter(id, j.l)
        return 'again'
    end
    call('HSET', P .. 'j:' .. id, 'm', text(tonumber(j.m or 0) + 1))
    if j.x then
        fail(id, j, call('GET', P .. 'r:' .. id), cancelled[1], cancelled[2])
    else
        fail(id, j, message, footprint, ending)
    end
    return 'interrupted'
end

-- Restores a result whose delivery failed, unless it is being deleted in bulk.
local function restore(id, j)
    call('SREM', P .. 'dlv:' .. j.i, id)
    call('ZREM', P .. 'v:' .. j.o, id)
    local bulk = call('HGET', P .. 'hb', j.o)
    if bulk then
        local before, until_ = string.match(bulk, '^(%d+) (%d+)$')
        if j.f + 0 < before + 0 and now < until_ + 0 then return remove(id, j.b) end
    end
    if is_gone(j.o, id) then return remove(id, j.b) end
    call('HDEL', P .. 'j:' .. id, 'i', 'F')
    call('HSET', P .. 'j:' .. id, 's', 'd')
    call('ZADD', P .. 'd:' .. j.o, id, id)
    call('ZADD', P .. 'e', j.fa, id)
end

-- Gives back what an incarnation has: at most this many of the jobs that it runs and delivers. Returns how many of
-- each, and whether all is given back.
local function give_back(inc, most, error)
    local counts = {again = 0, interrupted = 0, gone = 0, restored = 0}
    local run = call('SRANDMEMBER', P .. 'run:' .. inc, most)
    for _, id in ipairs(run) do
        local was = interrupt(inc, id, error[1], error[2], error[3], {error[4], error[5]})
        counts[was] = counts[was] + 1
    end
    if #run == most then return counts, false end
    local delivered = call('SRANDMEMBER', P .. 'dlv:' .. inc, most)
    for _, id in ipairs(delivered) do
        local j = job(id, 's', 'o', 'i', 'f', 'fa', 'b')
        if j.s == 'v' and j.i == inc then
            restore(id, j)
            counts.restored = counts.restored + 1
        end
        call('SREM', P .. 'dlv:' .. inc, id)
    end
    return counts, #delivered < most
end

-- Returns the fields that describe a job, in the order in which the store reads them. The lines of its request are
-- outside the hash, which is stored compactly only if each of its values is small.
local function told(id)
    local fields = call('HMGET', P .. 'j:' .. id, 's', 'h', 'c', 'f', 'e', 't', 'm', 'p', 'i', 'b', 'lg', 'lo')
    fields[2] = call('GET', P .. 'n:' .. id)
    return fields
end
