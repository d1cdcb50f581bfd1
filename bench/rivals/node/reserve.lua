-- Rival (d): the whole sale in one Redis. The same contract as reserve: one order a customer, a
-- waiting line, a deadline. KEYS: item, orders, line, holds. ARGV: customer, now in ms.
local existing = redis.call('HGET', KEYS[2], ARGV[1])
if existing then
  return existing
end
local ticket = redis.call('HINCRBY', KEYS[1], 'ticket', 1)
local terms = redis.call('HMGET', KEYS[1], 'stock', 'hold_ms', 'price')
local order = {
  order_id = ticket, customer_id = ARGV[1], ticket = ticket, created_at = ARGV[2],
  amount = terms[3], currency = 'EUR'
}
if ticket <= tonumber(terms[1]) then
  order.status = 'reserved'
  order.expires_at = ARGV[2] + terms[2]
  redis.call('ZADD', KEYS[4], order.expires_at, ARGV[1])
else
  order.status = 'waiting'
  redis.call('RPUSH', KEYS[3], ARGV[1])
end
local answer = cjson.encode(order)
redis.call('HSET', KEYS[2], ARGV[1], answer)
return answer
