-- recall: the job that was accepted under a key. ARGV[5..]: owner, key, fingerprint.
-- Replies `known ID`, `reused` or `unknown`. May happen twice.
local known = call('HGET', P .. 'k:' .. ARGV[5], ARGV[6])
if not known then return {'unknown'} end
local own, id = string.match(known, '^(%x+) (%d+)$')
if own ~= ARGV[7] then return {'reused'} end
mark(id)
return {'known', id}
