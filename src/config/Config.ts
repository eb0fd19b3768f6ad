/**
 * Every setting: name, default, what is allowed. A wrong value is one typed error that names the variable, the value and
 * what is allowed; nothing has been touched then. Secrets are `Redacted` from here on.
 */
import { Effect, type FileSystem, Redacted, Result } from "effect"
import { readServers } from "../nats/connectionOptions.ts"
import { isIP } from "node:net"
import { defaultTopics, parkedTopic, reserveTopic, type Topics } from "../contract/Topics.ts"
import { shards } from "./ConfigShards.ts"
import { ConfigInvalid, given, integer, parsed, shownItem } from "./ConfigValue.ts"
import { tracingSettings, type TracingSettings } from "./TracingSettings.ts"
import type { ShardSettings } from "./ConfigShards.ts"

export { ConfigInvalid } from "./ConfigValue.ts"

export interface Settings {
  /** Comma-separated server list; `undefined` starts an embedded server. May carry credentials. */
  readonly natsUrl: Redacted.Redacted | undefined
  readonly topics: Topics
  readonly replicas: number
  /** `undefined` starts embedded servers. */
  readonly shards: ReadonlyArray<ShardSettings> | undefined
  readonly autoMigrate: boolean
  /** The address on which metrics and health are served. */
  readonly metricsHost: string
  readonly metricsPort: number
  /** The least level that is logged. */
  readonly logLevel: LogLevel
  readonly dataDir: string
  /** `undefined` where no traces are exported. */
  readonly tracing: TracingSettings | undefined
}

const boolean = (value: string) => (value === "true" ? true : value === "false" ? false : undefined)

/** `off` logs nothing. */
const logLevels = ["debug", "info", "warn", "error", "off"] as const

export type LogLevel = (typeof logLevels)[number]

const topicPattern = /^[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*$/
const topic = (variable: string, fallback: string) =>
  parsed(variable, fallback, "a NATS subject of letters, digits, _ and -, parted by dots", (value) =>
    topicPattern.test(value) && value.length <= 128 && !value.startsWith("_INBOX") ? value : undefined,
  )

/** A server list; never shown in an error, since it may hold a password. */
export const natsUrl = Effect.flatMap(given("NATS_URL"), (value) => {
  if (value === undefined) return Effect.succeed(undefined)
  return Result.match(readServers(value), {
    onSuccess: () => Effect.succeed(Redacted.make(value)),
    onFailure: ({ allowed, index }) =>
      Effect.fail(new ConfigInvalid({ variable: "NATS_URL", value: shownItem(value.split(","), index), allowed })),
  })
})

/** The subjects of the contract. */
export const topics: Effect.Effect<Topics, ConfigInvalid> = Effect.gen(function* () {
  const found: Topics = {
    logs: yield* topic("NATS_LOGS_TOPIC", defaultTopics.logs),
    query: yield* topic("NATS_QUERY_TOPIC", defaultTopics.query),
    response: yield* topic("NATS_RESPONSE_TOPIC", defaultTopics.response),
    dead: yield* topic("NATS_DEAD_TOPIC", defaultTopics.dead),
  }
  yield* disjoint(found)
  return found
})

/** Where the embedded servers keep their data. */
export const dataDir: Effect.Effect<string, ConfigInvalid> = Effect.map(
  given("DATA_DIR"),
  (value) => value ?? ".objectlog",
)

/** Append requests a minute that the load generator sends where its command says nothing. */
export const queriesPerMinute: Effect.Effect<number, ConfigInvalid> = parsed(
  "QUERIES_MIN",
  10,
  "appends a minute, 1 … 100000000",
  integer(1, 100_000_000),
)

/** Reads and checks every setting of a worker. */
export const settings: Effect.Effect<Settings, ConfigInvalid, FileSystem.FileSystem> = Effect.gen(function* () {
  const mode = yield* parsed("MODE", "release", "release or debug", (value) =>
    value === "release" || value === "debug" ? value : undefined,
  )
  return {
    natsUrl: yield* natsUrl,
    topics: yield* topics,
    replicas: yield* parsed("NATS_STREAM_REPLICAS", 1, "1, 3 or 5", (value) =>
      ["1", "3", "5"].includes(value) ? Number(value) : undefined,
    ),
    shards: yield* shards,
    autoMigrate: yield* parsed("POSTGRES_AUTOMIGRATE", true, "true or false", boolean),
    // Whoever reaches it may read it, so beyond this machine only where somebody says so.
    metricsHost: yield* parsed(
      "METRICS_HOST",
      "127.0.0.1",
      "an IP address, such as 0.0.0.0 for all of this machine",
      (value) => (isIP(value) === 0 ? undefined : value),
    ),
    metricsPort: yield* parsed("METRICS_PORT", 2112, "a port, 1 … 65535", integer(1, 65_535)),
    logLevel: yield* parsed("LOG_LEVEL", mode === "debug" ? "debug" : "info", logLevels.join(", "), (value) =>
      logLevels.find((level) => level === value),
    ),
    dataDir: yield* dataDir,
    tracing: yield* tracingSettings,
  }
})

/** Two topics of which one is the other, or lies below it, would feed the service its own events. */
const disjoint = (topics: Topics) =>
  Effect.gen(function* () {
    const all = [
      ["NATS_LOGS_TOPIC", topics.logs],
      ["NATS_QUERY_TOPIC", topics.query],
      ["NATS_RESPONSE_TOPIC", topics.response],
      ["NATS_DEAD_TOPIC", topics.dead],
    ] as const
    const ours = [
      [parkedTopic(topics.logs), "where appends are parked"],
      [reserveTopic(topics.logs), "where room is reserved"],
    ] as const
    for (const [variable, value] of all) {
      for (const [taken, what] of ours) {
        if (value === taken || value.startsWith(`${taken}.`)) {
          const allowed = `a subject that is not ${taken} or below it, ${what}`
          return yield* new ConfigInvalid({ variable, value, allowed })
        }
      }
      for (const [other, otherValue] of all) {
        if (variable !== other && (value === otherValue || value.startsWith(`${otherValue}.`))) {
          return yield* new ConfigInvalid({ variable, value, allowed: `a subject that is not ${other} or below it` })
        }
      }
    }
  })
