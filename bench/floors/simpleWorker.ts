/**
 * Floor B: what a simple worker does. One message at a time: one autocommit insert, then the acknowledgement. No event, no
 * batch, no order, no protection against a second delivery.
 *
 * Environment: `NATS_URL`; `SHARDS`, a JSON array of connection strings.
 */
import { connect, type Msg } from "@nats-io/transport-node"
import { connectionOptions } from "../../src/nats/connectionOptions.ts"
import { pull } from "./pull.ts"
import { connectShards } from "./shards.ts"

const connection = await connect(connectionOptions(process.env["NATS_URL"]!, "floor"))
const shards = await connectShards(`
  create schema if not exists floor;
  create table if not exists floor.simple (object_id bigint, at timestamptz default now(), log text);
  create index if not exists simple_by_object on floor.simple (object_id, at)`)

const waiting: Array<Msg> = []
let busy = false
const work = async () => {
  if (busy) return
  busy = true
  for (let message = waiting.shift(); message !== undefined; message = waiting.shift()) {
    const { id, log } = JSON.parse(message.string()) as { id: number; log: string }
    await shards[id % shards.length]!.query({
      name: "append",
      text: "insert into floor.simple (object_id, log) values ($1, $2)",
      values: [id, log],
    })
    message.respond("+ACK")
    intake.done(1)
  }
  busy = false
}
const intake = pull(connection, 200, (message) => {
  waiting.push(message)
  void work()
})

process.once("SIGTERM", () => process.exit(0))
console.log("ready")
