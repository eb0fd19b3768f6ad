/**
 * The placement guard: decides, from what the databases have recorded, whether this worker may place objects.
 *
 * Each database holds one record: the name of its shard and the placement that it belongs to. A worker that is
 * configured differently would write objects where the others don't look, so it must refuse to start.
 *
 * **First start, in two phases.** A record is first `pending`, then `ready`. The caller writes `pending` in each empty
 * database, reads all of them again, and only when every one is there marks each `ready`. So:
 * - `ready` anywhere means that all databases once held the record; one that is empty beside it was lost or is a wrong one.
 * - nothing but `empty` and `pending` means that nobody has served yet; a crash in between is resumed by the next start,
 *   and two workers that start at once write the same.
 *
 * A `pending` record of something else, in a database where nothing is stored, was left by a start that never completed: of
 * a list that was mistaken, and is corrected now. It counts as none, and is replaced. Of two workers that start at once with
 * different placements, each may replace the other's; so records are changed only as they were compared, and the first
 * one that becomes `ready` decides. The other worker finds it when it reads again, and refuses.
 *
 * Pure: `compare` decides, its caller reads and writes.
 */
import { Schema } from "effect"
import { ShardSpec, slotCount } from "./HashRing.ts"

/** A placement, as each database holds it. Fields that this version fixes are open here, so that others can be named. */
export const PlacementRecord = Schema.Struct({
  /** Version of this record and of the placement function: 1. */
  version: Schema.Int,
  /** Hash from id to slot: `murmur3_x86_32`. */
  hash: Schema.String,
  /** Number of slots: 4,096. */
  slots: Schema.Int,
  /** Ordered: the order decides the placement. */
  shards: Schema.Array(ShardSpec),
})
export type PlacementRecord = typeof PlacementRecord.Type

/** What one database says of itself. */
export const ShardRecord = Schema.Struct({
  name: Schema.String,
  state: Schema.Literals(["pending", "ready"]),
  placement: PlacementRecord,
})
export type ShardRecord = typeof ShardRecord.Type

/** The placement of a list of shards, as this version records it. */
export const placementOf = (shards: ReadonlyArray<ShardSpec>): PlacementRecord => ({
  version: 1,
  hash: "murmur3_x86_32",
  slots: slotCount,
  shards: shards.map(({ name, weight }) => ({ name, weight })),
})

/** What was found at the address of one configured shard. */
export interface Found {
  /** The name in the configuration. */
  readonly shard: string
  /** For messages, so without a password. */
  readonly address: string
  /** `undefined`: a database without a record. `unreadable`: a record that `ShardRecord` does not decode. */
  readonly record: ShardRecord | undefined | "unreachable" | "unreadable"
  /** Where the record is `pending`: nothing is stored there. */
  readonly isEmpty: boolean
}

/** What the worker has to do. All lists of shards hold configured names. */
export type GuardVerdict =
  /** Start. `toRecord` are still pending and to be marked ready; `unreachable` are to be compared when they are back. */
  | { readonly _tag: "Match"; readonly toRecord: ReadonlyArray<string>; readonly unreachable: ReadonlyArray<string> }
  /**
   * First start: write `pending` in each of `empty`, in place of what is there, and compare again; with none empty, mark
   * each of `shards` as ready.
   */
  | { readonly _tag: "Initialise"; readonly shards: ReadonlyArray<string>; readonly empty: ReadonlyArray<string> }
  /** Nothing is ready, and a first start needs all shards: try again later. */
  | { readonly _tag: "Wait"; readonly unreachable: ReadonlyArray<string> }
  /** Do not start: each reason is one sentence for the operator. */
  | { readonly _tag: "Refuse"; readonly reasons: ReadonlyArray<string> }

/** The configured placement is not the one that the databases hold. */
export class PlacementMismatch extends Schema.TaggedError<PlacementMismatch>()("PlacementMismatch", {
  reasons: Schema.Array(Schema.String),
}) {
  override get message(): string {
    return this.reasons.map((reason) => `placement: ${reason}`).join("\n")
  }
}

/** Compares the configured placement with what was found; a shard that is not in `found` counts as unreachable. */
export const compare = (configured: PlacementRecord, all: ReadonlyArray<Found>): GuardVerdict => {
  const found = all.map((at) => (isAbandoned(configured, at, all) ? { ...at, record: undefined } : at))
  const recorded = found.flatMap(withRecord)
  const renamed = renames(configured, recorded)
  const reasons = new Set([
    ...unreadableReasons(found),
    ...formatReasons(configured, recorded),
    ...identityReasons(configured, recorded, renamed),
    ...shardsReasons(configured, recorded, renamed),
    ...emptyReasons(found, recorded, renamed),
  ])
  if (reasons.size > 0) return { _tag: "Refuse", reasons: [...reasons] }

  const shards = configured.shards.map((shard) => shard.name)
  const records = new Map(found.map((at) => [at.shard, at.record]))
  const recordOf = (shard: string) => (records.has(shard) ? records.get(shard) : "unreachable")
  const unreachable = shards.filter((shard) => recordOf(shard) === "unreachable")
  if (recorded.some(isReady)) {
    const pending = new Set(recorded.filter((at) => !isReady(at)).map((at) => at.shard))
    return { _tag: "Match", toRecord: shards.filter((shard) => pending.has(shard)), unreachable }
  }
  if (unreachable.length > 0) return { _tag: "Wait", unreachable }
  return { _tag: "Initialise", shards, empty: shards.filter((shard) => recordOf(shard) === undefined) }
}

// ---------------------------------------------------------------------------------------------------------------------
// Implementation
// ---------------------------------------------------------------------------------------------------------------------

interface Recorded extends Found {
  readonly record: ShardRecord
}

/** Recorded name -> configured name, of the databases that only changed their name. */
type Renames = ReadonlyMap<string, string>

const withRecord = (at: Found): ReadonlyArray<Recorded> =>
  typeof at.record === "object" ? [{ ...at, record: at.record }] : []

/**
 * Was it left by a start that never completed? Not where another database has the same record: those are one database at two
 * addresses, or copies.
 */
const isAbandoned = (configured: PlacementRecord, at: Found, all: ReadonlyArray<Found>): boolean => {
  const { isEmpty, record, shard } = at
  if (typeof record !== "object" || record.state !== "pending" || !isEmpty) return false
  const isOurs = record.name === shard && isSamePlacement(record.placement, configured)
  return !isOurs && !all.some((other) => other !== at && isSameRecord(other.record, record))
}

const isSamePlacement = (one: PlacementRecord, other: PlacementRecord): boolean =>
  sameFormat(one, other) && shardsKey(one) === shardsKey(other)

const isSameRecord = (one: Found["record"], other: ShardRecord): boolean =>
  typeof one === "object" && one.name === other.name && isSamePlacement(one.placement, other.placement)

const shardsKey = ({ shards }: PlacementRecord): string =>
  JSON.stringify(shards.map(({ name, weight }) => [name, weight]))

const isReady = (at: Recorded): boolean => at.record.state === "ready"

const namesOf = (placement: PlacementRecord): ReadonlyArray<string> => placement.shards.map((shard) => shard.name)

const list = (names: ReadonlyArray<string>): string => `(${names.join(", ")})`

const sameFormat = (configured: PlacementRecord, recorded: PlacementRecord): boolean =>
  configured.version === recorded.version && configured.hash === recorded.hash && configured.slots === recorded.slots

/**
 * A database was renamed if neither name is known to the other side, and it stands at the same position or its placement
 * shares other shards with the configuration. Otherwise it belongs to something else.
 */
const renames = (configured: PlacementRecord, recorded: ReadonlyArray<Recorded>): Renames => {
  const here = namesOf(configured)
  const found = new Map<string, string>()
  for (const { shard, record } of recorded) {
    const there = namesOf(record.placement)
    if (record.name === shard || here.includes(record.name) || there.includes(shard)) continue
    const related = here.indexOf(shard) === there.indexOf(record.name) || there.some((name) => here.includes(name))
    if (related) found.set(record.name, shard)
  }
  return found
}

const unreadableReasons = (found: ReadonlyArray<Found>): ReadonlyArray<string> =>
  found
    .filter((at) => at.record === "unreadable")
    .map(
      ({ address, shard }) =>
        `the placement recorded in the database of shard ${shard} at ${address} cannot be read: ` +
        `start the objectlog that wrote it`,
    )

const formatReasons = (configured: PlacementRecord, recorded: ReadonlyArray<Recorded>): ReadonlyArray<string> =>
  recorded.flatMap(({ record: { name, placement } }) =>
    (
      [
        ["version", placement.version, configured.version],
        ["hash", placement.hash, configured.hash],
        ["slots", placement.slots, configured.slots],
      ] as const
    )
      .filter(([, there, here]) => there !== here)
      .map(
        ([field, there, here]) =>
          `database ${name} records a placement with ${field} ${there}, but this objectlog has ${field} ${here}: ` +
          `start the objectlog that wrote it`,
      ),
  )

/** Databases that are not the shard that POSTGRES_IPS says they are. */
const identityReasons = (
  configured: PlacementRecord,
  recorded: ReadonlyArray<Recorded>,
  renamed: Renames,
): ReadonlyArray<string> => {
  const told = new Set<Recorded>()
  return recorded.flatMap((at) => {
    const { address, record, shard } = at
    if (record.name === shard || told.has(at)) return []
    const is = `the database at ${address} is shard ${record.name}`
    const twin = recorded.find((other) => other !== at && other.record.name === record.name)
    if (twin !== undefined) {
      told.add(twin)
      return [
        `the databases at ${at.address} and ${twin.address} are both shard ${record.name}: ` +
          `they are one database or copies of it, correct the address of shard ${shard}`,
      ]
    }
    const other = recorded.find(({ record: { name }, shard: expected }) => expected === record.name && name === shard)
    if (other !== undefined) {
      told.add(other)
      return [
        `${is}, POSTGRES_IPS expects shard ${shard} there; the database at ${other.address} is shard ` +
          `${other.record.name}, POSTGRES_IPS expects shard ${other.shard} there: their addresses are swapped`,
      ]
    }
    if (renamed.get(record.name) === shard) {
      return [
        `${is}, but POSTGRES_IPS calls it ${shard}: call it ${record.name} again, as in ${record.name}=postgres://…`,
      ]
    }
    if (namesOf(configured).includes(record.name)) {
      return [`${is}, POSTGRES_IPS expects shard ${shard} there: correct the address of shard ${shard}`]
    }
    return [
      `${is} of the placement ${list(namesOf(record.placement))}, POSTGRES_IPS expects shard ${shard} there: wrong database?`,
    ]
  })
}

/** Shards that are missing, new, in another order or of another weight; each recorded placement is compared once. */
const shardsReasons = (
  configured: PlacementRecord,
  recorded: ReadonlyArray<Recorded>,
  renamed: Renames,
): ReadonlyArray<string> => {
  const here = namesOf(configured)
  const compared = new Set<string>()
  return recorded.flatMap(({ record: { name: database, placement } }) => {
    // A database of something else, or of another version, says nothing about the shards of this placement.
    if (!(here.includes(database) || renamed.has(database)) || !sameFormat(configured, placement)) return []
    const key = shardsKey(placement)
    if (compared.has(key)) return []
    compared.add(key)
    return differences(configured, database, placement, renamed)
  })
}

const differences = (
  configured: PlacementRecord,
  database: string,
  placement: PlacementRecord,
  renamed: Renames,
): ReadonlyArray<string> => {
  const here = new Map(configured.shards.map((shard) => [shard.name, shard]))
  const there = new Map(placement.shards.map((shard) => [renamed.get(shard.name) ?? shard.name, shard]))
  const reasons: Array<string> = []
  for (const [name, shard] of there) {
    if (here.has(name)) continue
    reasons.push(
      `shard ${shard.name} is recorded in database ${database} but missing from POSTGRES_IPS: ` +
        `add it back, its logs are nowhere else`,
    )
  }
  for (const name of here.keys()) {
    if (there.has(name)) continue
    reasons.push(
      `shard ${name} is in POSTGRES_IPS but not in the recorded placement ${list(namesOf(placement))}: ` +
        `moving logs to a new shard is not supported yet, remove ${name}`,
    )
  }
  const orderHere = [...here.keys()].filter((name) => there.has(name))
  const orderThere = [...there.keys()].filter((name) => here.has(name))
  if (orderHere.some((name, index) => name !== orderThere[index])) {
    reasons.push(
      `POSTGRES_IPS has the shards in the order ${list(namesOf(configured))}, but database ${database} records ` +
        `${list(namesOf(placement))}: restore the order, it decides where logs are`,
    )
  }
  for (const [name, shard] of there) {
    const weight = here.get(name)?.weight
    if (weight === undefined || weight === shard.weight) continue
    reasons.push(
      `shard ${name} has weight ${weight} in POSTGRES_IPS, but database ${database} records weight ${shard.weight}: ` +
        `moving logs to fit a new weight is not supported yet, set it back to ${shard.weight}`,
    )
  }
  return reasons
}

/** A database may only be empty while none is ready. */
const emptyReasons = (
  found: ReadonlyArray<Found>,
  recorded: ReadonlyArray<Recorded>,
  renamed: Renames,
): ReadonlyArray<string> =>
  found.flatMap(({ address, record, shard }) => {
    if (record !== undefined) return []
    const witness = recorded.find(
      (at) => isReady(at) && namesOf(at.record.placement).some((name) => (renamed.get(name) ?? name) === shard),
    )
    if (witness === undefined) return []
    return [
      `the database of shard ${shard} at ${address} is empty, but database ${witness.record.name} records it as part ` +
        `of the placement: wrong or lost database? Correct its address, or restore it from a backup`,
    ]
  })
