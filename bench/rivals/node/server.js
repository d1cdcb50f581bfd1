// Rival (d): Fastify and ioredis with auto-pipelining, one process.  node server.js PORT REDIS_PORT
import { readFileSync } from "node:fs";
import Fastify from "fastify";
import Redis from "ioredis";

const [port, redisPort] = process.argv.slice(2).map(Number);
const redis = new Redis({ port: redisPort, enableAutoPipelining: true });
redis.defineCommand("reserve", {
  numberOfKeys: 4,
  lua: readFileSync(new URL("reserve.lua", import.meta.url), "utf8"),
});

const app = Fastify();
app.post(
  "/items/:item/orders",
  {
    schema: {
      params: { type: "object", properties: { item: { type: "integer" } } },
      headers: {
        type: "object",
        required: ["x-customer-id"],
        properties: { "x-customer-id": { type: "string", minLength: 1, maxLength: 128 } },
      },
    },
  },
  async (request, reply) => {
    const item = request.params.item;
    const order = await redis.reserve(
      `item:${item}`, `orders:${item}`, `line:${item}`, `holds:${item}`,
      request.headers["x-customer-id"], Date.now(),
    );
    reply.code(201).type("application/json");
    return order;
  },
);
await app.listen({ port, host: "127.0.0.1" });
