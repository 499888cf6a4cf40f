-- take: gives jobs to an incarnation, the lowest ids among the heads of the lanes; each runs there from now on.
-- ARGV[5..]: incarnation, how many at most, whether more of its workers are idle (1 or 0), then for each lane its
-- name, whether its jobs run again (1 or 0), how many of it at most.
-- Replies `jobs MORE`, then `ID FENCE BYTES` for each; or `fenced`. An incarnation that found too few is notified of
-- the next.
local inc, most, idle = ARGV[5], tonumber(ARGV[6]), ARGV[7] == '1'
if not is_living(inc) then return reply({'fenced'}) end
enter_due()
local lanes, answer = {}, {'jobs', '0'}
for n = 8, #ARGV, 3 do
    local ids = call('ZRANGE', P .. 'l:' .. ARGV[n], 0, ARGV[n + 2])
    lanes[#lanes + 1] = {name = ARGV[n], again = ARGV[n + 1], most = tonumber(ARGV[n + 2]), ids = ids, next = 1}
end

local function first()
    local best
    for _, lane in ipairs(lanes) do
        local id = lane.next <= lane.most and lane.ids[lane.next]
        if id and (not best or tonumber(id) < tonumber(best.ids[best.next])) then best = lane end
    end
    return best
end

for _ = 1, most do
    local lane = first()
    if not lane then break end
    local id, number = lane.ids[lane.next], fence()
    lane.next = lane.next + 1
    call('ZREM', P .. 'l:' .. lane.name, id)
    add('waiting', -1)
    local key = P .. 'j:' .. id
    call('HINCRBY', key, 'n', 1)
    call('HSET', key, 's', 'r', 'i', inc, 'F', number, 'a', lane.again)
    call('HSETNX', key, 't', text(stamp))
    call('SADD', P .. 'run:' .. inc, id)
    answer[#answer + 1] = id
    answer[#answer + 1] = number
    answer[#answer + 1] = call('HGET', key, 'b')
end
local has_more = false
for _, lane in ipairs(lanes) do has_more = has_more or lane.ids[lane.next] ~= nil end
if has_more then answer[2] = '1' end
if #answer < 2 + 3 * most or (idle and not has_more) then
    for _, lane in ipairs(lanes) do call('SADD', P .. 'h:' .. lane.name, inc) end
end
return reply(answer)
