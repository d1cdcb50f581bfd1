// Reserves a unit and pays for it from Node, as a tool of your own does that takes the money.
//
// With `make run` in another terminal, and an item on sale (see README.md in this folder):
//
//   npm install --no-save pg@8
//   export DATABASE_URL=$(cat .flashsale/database.url)
//   node examples/reserve_and_pay.mjs ITEM_ID CUSTOMER KEY
//
// KEY names this request: whoever runs it again with the same key gets the same order, not another.

import pg from "pg";

const [itemId, customer, key] = process.argv.slice(2);
const client = new pg.Client({ connectionString: process.env.DATABASE_URL });
await client.connect();

// The row that a function returns. What happens in a sale is in the row and is no error.
async function ask(query, ...values) {
  const { rows } = await client.query(query, values);
  return rows[0];
}

try {
  // The URL of `make run` is the owner's. A login of your own, made a member of this role,
  // may only do what the role may.
  await client.query("set role flashsale_tool");

  const order = await ask("select * from flashsale.reserve($1, $2, $3)", itemId, customer, key);
  if (order.status !== "reserved") {
    const place = order.position ? `, position ${order.position} in the line` : "";
    console.log(`${customer}: ${order.status ?? order.outcome}${place}`);
  } else {
    console.log(`${customer}: reserved with ticket ${order.ticket}`);

    // Here your tool takes the money. `pg` returns a bigint, such as payment_id, as a string:
    // leave it one, since a number of JavaScript has too few digits.
    const paid = await ask(
      "select * from flashsale.pay($1, $2, $3, $4)",
      order.payment_id, `till-${order.payment_id}`, order.amount, order.currency,
    );
    console.log(`${customer}: ${paid.outcome}`);
  }
} catch (error) {
  // A call that makes no sense, such as for an item that does not exist. `code` is the SQLSTATE.
  console.error(`${error.code}: ${error.message}`);
  process.exitCode = 1;
} finally {
  await client.end();
}
