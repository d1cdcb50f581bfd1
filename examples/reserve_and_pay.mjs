// Reserves a unit and pays for it from Node, like a tool of your own that takes the money itself.
//
// With `make run` in another terminal, and an item on sale (see README.md in this folder):
//
//   npm install --no-save pg@8
//   export DATABASE_URL=$(cat .flashsale/database.url)
//   node examples/reserve_and_pay.mjs ITEM_ID CUSTOMER KEY
//
// KEY names this request: a repeated run with the same key gets the same order, and no other.

import pg from "pg";

const [itemId, customer, key] = process.argv.slice(2);
const client = new pg.Client({ connectionString: process.env.DATABASE_URL });
await client.connect();

// The row that a function returns. A refusal is an outcome in the row, and no error.
async function ask(query, ...values) {
  const { rows } = await client.query(query, values);
  return rows[0];
}

try {
  // The URL of `make run` is that of the owner, who may act as any role. Make your own login a
  // member of this role: then it may do only what the role may do.
  await client.query("set role flashsale_tool");

  const order = await ask("select * from flashsale.reserve($1, $2, $3)", itemId, customer, key);
  if (order.status !== "reserved") {
    const place = order.position ? `, position ${order.position} in the line` : "";
    console.log(`${customer}: ${order.status ?? order.outcome}${place}`);
  } else {
    console.log(`${customer}: reserved with ticket ${order.ticket}`);

    // Here your tool takes the money; the second argument is your name for this payment. `pg`
    // returns a bigint, such as order_id, as a string: leave it one, since it does not fit into a
    // JavaScript number.
    const paid = await ask(
      "select * from flashsale.pay_offline($1, $2)", order.order_id, `till-${order.order_id}`,
    );
    console.log(`${customer}: ${paid.outcome}`);
  }
} catch (error) {
  // Misuse, such as an item that does not exist. `code` is the SQLSTATE.
  console.error(`${error.code}: ${error.message}`);
  process.exitCode = 1;
} finally {
  await client.end();
}
