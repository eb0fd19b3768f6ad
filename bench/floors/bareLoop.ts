/**
 * Floor A: the best that these parts give. JetStream pull, JSON.parse, one bulk insert per batch and shard behind the locks
 * of its object rows, pipelined events with `Nats-Msg-Id`, acknowledgement.
 *
 * No Effect, no error handling, no idempotency, no positions, ids as doubles, one index. A transaction is one round trip: all
 * of its statements are sent as one text, which PostgreSQL runs as one transaction.
 *
 * Environment: `NATS_URL`; `SHARDS`, a JSON array of connection strings; `OBJECTS`, how many rows to prepare; `SIZE`, bytes of a
 * log, 100 without it.
 */
import { connect, createInbox, type Msg, type MsgHdrs } from "@nats-io/transport-node"
import { connectionOptions } from "../../src/nats/connectionOptions.ts"
import { pull } from "./pull.ts"
import { connectShards } from "./shards.ts"

/** As large as those of the service, which gives the highest rate of 250, 500, 1,000 and 2,000. */
const batchMax = 2_000
/** A client that has more than 64 MiB outstanding is cut off by the broker. */
const window = Math.min(8_000, Math.floor((32 * 1024 * 1024) / Number(process.env["SIZE"] ?? 100)))

interface Request {
  readonly message: Msg
  readonly id: number
  readonly log: string
  /** The member of the event, or nothing. */
  readonly requestId: string
  readonly seq: string
  readonly timestamp: string
}

interface Batch {
  readonly requests: ReadonlyArray<Request>
  unconfirmed: number
}

const connection = await connect(connectionOptions(process.env["NATS_URL"]!, "floor"))
const clients = await connectShards(`
  create schema if not exists floor;
  create table if not exists floor.objects (id bigint primary key);
  create table if not exists floor.log_entries (object_id bigint, timestamp bigint, seq bigint, log text,
    primary key (object_id, timestamp, seq));
  insert into floor.objects select generate_series(0, ${Number(process.env["OBJECTS"]) - 1}) on conflict do nothing`)
const shards = clients.map((client) => ({ client, waiting: [] as Array<Request>, busy: false }))

const quoted = (text: string) => `"${text.replace(/["\\]/g, String.raw`\$&`)}"`
const literal = (items: ReadonlyArray<string | number>) => `'{${items.join(",").replaceAll("'", "''")}}'`

const transaction = (requests: ReadonlyArray<Request>): string => {
  const ids = literal([...new Set(requests.map(({ id }) => id))].sort((a, b) => a - b))
  return `select id from floor.objects where id = any(${ids}::bigint[]) order by id for update;
    insert into floor.log_entries select * from unnest(
      ${literal(requests.map(({ id }) => id))}::bigint[],
      ${literal(requests.map(({ timestamp }) => timestamp))}::bigint[],
      ${literal(requests.map(({ seq }) => seq))}::bigint[],
      ${literal(requests.map(({ log }) => quoted(log)))}::text[])`
}

const inbox = createInbox()
const batches = new Map<number, Batch>()
let lastBatch = 0
const ack = Buffer.from("+ACK")

connection.subscribe(`${inbox}.*`, {
  callback: (_, { subject }) => {
    const number = Number(subject.slice(inbox.length + 1))
    const batch = batches.get(number)!
    if (--batch.unconfirmed > 0) return
    batches.delete(number)
    for (const { message } of batch.requests) message.respond(ack)
    intake.done(batch.requests.length)
  },
})

/** Headers that are bytes already: the client's own would validate and canonicalise each name. */
const messageId = (id: string) => {
  const bytes = Buffer.from(`NATS/1.0\r\nNats-Msg-Id: ${id}\r\n\r\n`)
  return { encode: () => bytes } as unknown as MsgHdrs
}

const announce = (requests: ReadonlyArray<Request>) => {
  const number = ++lastBatch
  batches.set(number, { requests, unconfirmed: requests.length })
  const reply = `${inbox}.${number}`
  for (const { id, requestId, seq, timestamp } of requests) {
    const event = `{"type":"append","status":"ok","id":${id},"seq":${seq},"timestamp":${timestamp.slice(0, -6)}${requestId}}`
    const headers = messageId(`logs-${seq}-${timestamp}`)
    connection.publish("response", Buffer.from(event), { headers, reply })
  }
}

const flush = async (shard: (typeof shards)[number]) => {
  if (shard.busy) return
  shard.busy = true
  while (shard.waiting.length > 0) {
    const requests = shard.waiting.splice(0, batchMax)
    await shard.client.query(transaction(requests))
    announce(requests)
  }
  shard.busy = false
}

let scheduled = false
const intake = pull(connection, window, (message) => {
  const tokens = message.reply!.split(".")
  const { id, log, request_id } = JSON.parse(message.string()) as { id: number; log: string; request_id?: string }
  const requestId = request_id === undefined ? "" : `,"request_id":"${request_id}"`
  shards[id % shards.length]!.waiting.push({ message, id, log, requestId, seq: tokens[5]!, timestamp: tokens[7]! })
  if (scheduled) return
  scheduled = true
  setImmediate(() => {
    scheduled = false
    for (const shard of shards) void flush(shard)
  })
})

process.once("SIGTERM", () => process.exit(0))
console.log("ready")
