/** What must be true once a run has drained: the guarantees, stated over everything that was stored. */
import { fromStored, toMillis } from "../../src/contract/LogEntry.ts"
import { type Clients, isBefore, type SentAppend } from "./Clients.ts"
import type { SimulatedBroker } from "./SimulatedBroker.ts"
import type { EntryRow, SimulatedPostgres } from "./SimulatedPostgres.ts"
import type { World } from "./World.ts"

interface AppendEvent {
  readonly status: string
  readonly type: string
  readonly position?: number
  readonly seq?: number
  readonly timestamp?: number
  readonly duplicate?: boolean
  readonly error?: { readonly code: string }
  readonly request_id?: string
}

export const check = (
  world: World,
  broker: SimulatedBroker,
  clients: Clients,
  databases: ReadonlyArray<SimulatedPostgres>,
  shardOf: (id: bigint) => SimulatedPostgres,
): void => {
  checkLogs(world, clients, databases, shardOf)
  const firsts = checkAppends(world, broker, clients, shardOf)
  checkEvents(world, broker, clients, firsts)
  checkDeadLetters(world, broker, clients)
}

/** Each log is 1 … n without gap, in its own shard alone, and says what the broker said. */
const checkLogs = (
  world: World,
  clients: Clients,
  databases: ReadonlyArray<SimulatedPostgres>,
  shardOf: (id: bigint) => SimulatedPostgres,
): void => {
  for (const database of databases) {
    for (const objectId of database.objectIds()) {
      const id = BigInt.asUintN(64, objectId)
      const rows = database.entriesOf(objectId)
      if (shardOf(id) !== database) world.violation(`object ${id} is on shard ${database.name}, which is not its own`)
      if (database.countOf(objectId) !== BigInt(rows.length)) {
        world.violation(`object ${id} counts ${database.countOf(objectId)} entries and has ${rows.length}`)
      }
      rows.forEach((row, at) => {
        if (row.position !== BigInt(at + 1)) {
          world.violation(`object ${id}: entry ${at + 1} in the order of commit has position ${row.position}`)
        }
        const sent = clients.sentWith(Number(row.seq))
        if (
          sent === undefined ||
          sent.objectId !== id ||
          sent.stored.timestamp !== row.timestamp ||
          sent.text !== fromStored(row.log, row.escaped) ||
          (sent.messageId ?? null) !== row.messageId
        ) {
          world.violation(`object ${id}: position ${row.position} is not the append that it names`)
        }
      })
    }
  }
}

const identity = (sent: SentAppend): string =>
  sent.messageId === undefined ? `#${sent.stored.seq}` : `${sent.objectId} ${sent.messageId}`

/** Every append is in its log exactly once, or was refused with a reason. Gives the entry of each. */
const checkAppends = (
  world: World,
  broker: SimulatedBroker,
  clients: Clients,
  shardOf: (id: bigint) => SimulatedPostgres,
): ReadonlyMap<string, EntryRow> => {
  const rows = new Map<number, EntryRow>()
  for (const id of clients.objects) {
    for (const row of shardOf(id).entriesOf(BigInt.asIntN(64, id))) {
      if (rows.has(Number(row.seq))) world.violation(`logs #${row.seq} is stored twice`)
      rows.set(Number(row.seq), row)
    }
  }
  const refused = new Set<number>()
  for (const { original } of broker.deadLetters) if (original.subject === "logs") refused.add(original.seq)
  const firsts = new Map<string, EntryRow>()
  for (const sent of clients.sent) {
    const { seq } = sent.stored
    const row = rows.get(seq)
    if (row !== undefined) {
      const key = identity(sent)
      if (firsts.has(key)) world.violation(`${key} made two entries`)
      firsts.set(key, row)
    }
    if (row !== undefined && refused.has(seq)) world.violation(`logs #${seq} is stored and is a dead letter`)
    if (row === undefined && sent.refusal !== undefined && !refused.has(seq)) {
      world.violation(`logs #${seq} had to be refused and is no dead letter`)
    }
    if (row !== undefined && sent.refusal !== undefined) world.violation(`logs #${seq} had to be refused and is stored`)
  }
  for (const sent of clients.sent) {
    if (sent.refusal !== undefined || firsts.has(identity(sent))) continue
    const { seq } = sent.stored
    world.violation(refused.has(seq) ? `logs #${seq} is good and was refused` : `logs #${seq} is lost`)
  }
  for (const id of clients.objects) {
    // By the broker's stamps, which are its order.
    const sorted = shardOf(id)
      .entriesOf(BigInt.asIntN(64, id))
      .toSorted((a, b) => (isBefore(a, b) ? -1 : 1))
    for (let i = 1; i < sorted.length; i++) {
      const [a, b] = [sorted[i - 1]!, sorted[i]!]
      if (world.brokerClockBehindNanos === 0n && a.seq > b.seq) {
        world.violation(`object ${id}: #${a.seq} is sorted before #${b.seq}, against the broker's order`)
      }
    }
  }
  return firsts
}

/** Every event names a true entry or a true refusal, the same each time, and every append has one. */
const checkEvents = (
  world: World,
  broker: SimulatedBroker,
  clients: Clients,
  firsts: ReadonlyMap<string, EntryRow>,
): void => {
  const byRequest = Map.groupBy(broker.events, ({ payload, subject }) => {
    const event = JSON.parse(payload) as AppendEvent
    return event.type === "append" ? `${subject} ${event.request_id ?? ""}` : `query ${event.request_id ?? ""}`
  })
  for (const sent of clients.sent) {
    const name = `logs #${sent.stored.seq}`
    if (sent.requestId === undefined) {
      const prefix = `logs-${sent.stored.seq}-`
      if (!broker.events.some(({ messageId }) => messageId.startsWith(prefix))) world.violation(`${name} has no event`)
      continue
    }
    const events = byRequest.get(`response ${sent.requestId}`) ?? []
    if (events.length === 0) world.violation(`${name} has no event`)
    if (sent.replyTo?.startsWith("response.") && !byRequest.has(`${sent.replyTo} ${sent.requestId}`)) {
      world.violation(`${name} has no event on its reply_to`)
    }
    if (new Set(events.map(({ payload }) => payload)).size > 1) world.violation(`the events of ${name} differ`)
    for (const { payload } of events) {
      const event = JSON.parse(payload) as AppendEvent
      if (sent.refusal !== undefined) {
        if (event.error?.code !== sent.refusal) world.violation(`${name} was not refused with ${sent.refusal}`)
        continue
      }
      const row = firsts.get(identity(sent))
      if (
        row === undefined ||
        event.status !== "ok" ||
        event.position !== Number(row.position) ||
        event.seq !== Number(row.seq) ||
        event.timestamp !== toMillis(row.timestamp) ||
        (event.duplicate ?? false) !== (Number(row.seq) !== sent.stored.seq)
      ) {
        world.violation(`the event of ${name} does not name its entry: ${payload}`)
      }
    }
  }
  for (const requestId of clients.malformedReads) {
    const events = byRequest.get(`query ${requestId}`) ?? []
    if (!events.some(({ payload }) => (JSON.parse(payload) as AppendEvent).error?.code === "invalid_message")) {
      world.violation(`the malformed read ${requestId} was not refused`)
    }
  }
}

/** What is refused is bad, and its reason is the right one. */
const checkDeadLetters = (world: World, broker: SimulatedBroker, clients: Clients): void => {
  for (const { code, original } of broker.deadLetters) {
    if (original.subject !== "logs") continue
    const sent = clients.sentWith(original.seq)
    if (sent?.refusal !== code) world.violation(`logs #${original.seq} is a dead letter for ${code}`)
  }
}
