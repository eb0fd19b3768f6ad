/**
 * Every setting: name, default, what is allowed. A wrong value is one typed error that names the variable, the value and
 * what is allowed; nothing has been touched then. Secrets are `Redacted` from here on.
 */
import { Effect, FileSystem, Redacted, Result } from "effect"
import { readServers } from "./broker/connectionOptions.ts"
import { parkedTopic, reserveTopic } from "./broker/setAside.ts"
import { ConfigInvalid, given, integer, parsed } from "./ConfigValue.ts"
import { tracingSettings, type TracingSettings } from "./observe/TracingSettings.ts"

export { ConfigInvalid } from "./ConfigValue.ts"

/** How to reach one shard. */
export interface ShardAddress {
  readonly name: string
  readonly weight: number
  readonly host: string
  readonly port: number
  readonly user: string
  readonly password: Redacted.Redacted
  readonly database: string
  /** The whole URL where one was given: it may carry TLS options. Wins over the fields. */
  readonly url: Redacted.Redacted | undefined
}

export interface Topics {
  readonly logs: string
  readonly query: string
  readonly response: string
  readonly dead: string
}

export interface Settings {
  /** Comma-separated server list; `undefined` starts an embedded server. May carry credentials. */
  readonly natsUrl: Redacted.Redacted | undefined
  readonly topics: Topics
  readonly replicas: number
  /** `undefined` starts embedded servers. */
  readonly shards: ReadonlyArray<ShardAddress> | undefined
  readonly autoMigrate: boolean
  readonly metricsPort: number
  /** The least level that is logged. */
  readonly logLevel: LogLevel
  readonly dataDir: string
  /** `undefined` where no traces are exported. */
  readonly tracing: TracingSettings | undefined
}

const port = integer(1, 65_535)

const boolean = (value: string) => (value === "true" ? true : value === "false" ? false : undefined)

/** `off` logs nothing. */
const logLevels = ["debug", "info", "warn", "error", "off"] as const

export type LogLevel = (typeof logLevels)[number]

const topicPattern = /^[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*$/
const topic = (variable: string, fallback: string) =>
  parsed(variable, fallback, "a NATS subject of letters, digits, _ and -, parted by dots", (value) =>
    topicPattern.test(value) && value.length <= 128 && !value.startsWith("_INBOX") ? value : undefined,
  )

/** `VAR`, or the content of the file that `VAR_FILE` names, without its final newline. */
const secret = Effect.fnUntraced(function* (variable: string, fallback: string) {
  const direct = yield* given(variable)
  const file = yield* given(`${variable}_FILE`)
  if (direct !== undefined && file !== undefined) {
    return yield* new ConfigInvalid({
      variable: `${variable}_FILE`,
      value: file,
      allowed: `only one of ${variable} and ${variable}_FILE`,
    })
  }
  if (file === undefined) return Redacted.make(direct ?? fallback)
  const fs = yield* FileSystem.FileSystem
  const content = yield* fs
    .readFileString(file)
    .pipe(
      Effect.mapError(
        () => new ConfigInvalid({ variable: `${variable}_FILE`, value: file, allowed: "a readable file" }),
      ),
    )
  return Redacted.make(content.replace(/\r?\n$/, ""))
})

/**
 * An item of a list as an error shows it. Where the list holds credentials only its place is shown: a password may
 * contain the comma or the @ that would tell its end.
 */
const shownItem = (items: ReadonlyArray<string>, index: number): string =>
  items.some((item) => /@|password/i.test(item)) ? `<redacted>, item ${index + 1}` : items[index]!.trim()

/** A server list; never shown in an error, since it may hold a password. */
export const natsUrl = Effect.flatMap(given("NATS_URL"), (value) => {
  if (value === undefined) return Effect.succeed(undefined)
  return Result.match(readServers(value), {
    onSuccess: () => Effect.succeed(Redacted.make(value)),
    onFailure: ({ allowed, index }) =>
      Effect.fail(new ConfigInvalid({ variable: "NATS_URL", value: shownItem(value.split(","), index), allowed })),
  })
})

const shardNamePattern = /^[A-Za-z0-9_.:[\]-]{1,128}$/
const shardAllowed =
  "shards as host, host:port or name=postgres://user:password@host:port/database?weight=2, parted by commas"

interface ShardDefaults {
  readonly port: number
  readonly user: string
  readonly password: Redacted.Redacted
  readonly database: string
}

/** `undefined` where a % doesn't begin an escape. */
const decoded = (text: string): string | undefined => {
  try {
    return decodeURIComponent(text)
  } catch {
    return undefined
  }
}

/** Reads one shard of POSTGRES_IPS; `undefined` where it is malformed. A bare host is its own name. */
const parseShard = (text: string, defaults: ShardDefaults): ShardAddress | undefined => {
  const named = /^([^=/]+)=(postgres(?:ql)?:\/\/.*)$/.exec(text)
  if (named === null) {
    const [host, portText, ...rest] = text.split(":")
    const shardPort = portText === undefined ? defaults.port : port(portText)
    if (host === undefined || !/^[A-Za-z0-9_.-]+$/.test(host) || rest.length > 0 || shardPort === undefined)
      return undefined
    return { name: text, weight: 1, host, ...defaults, port: shardPort, url: undefined }
  }
  const name = named[1]!.trim()
  const url = URL.parse(named[2]!)
  if (url === null || url.hostname === "" || !shardNamePattern.test(name)) return undefined
  const weightText = url.searchParams.get("weight")
  const weight = weightText === null ? 1 : /^\d{1,4}(?:\.\d{1,3})?$/.test(weightText) ? Number(weightText) : 0
  if (!(weight > 0)) return undefined
  url.searchParams.delete("weight")
  if (url.username === "") url.username = encodeURIComponent(defaults.user)
  if (url.password === "") url.password = encodeURIComponent(Redacted.value(defaults.password))
  if (url.port === "") url.port = String(defaults.port)
  if (url.pathname.length <= 1) url.pathname = `/${encodeURIComponent(defaults.database)}`
  const user = decoded(url.username)
  const password = decoded(url.password)
  const database = decoded(url.pathname.slice(1))
  const shardPort = port(url.port)
  if (user === undefined || password === undefined || database === undefined || shardPort === undefined)
    return undefined
  return {
    name,
    weight,
    host: url.hostname,
    port: shardPort,
    user,
    password: Redacted.make(password),
    database,
    url: Redacted.make(url.href),
  }
}

const shards = (defaults: ShardDefaults) =>
  Effect.flatMap(given("POSTGRES_IPS"), (value) => {
    if (value === undefined) return Effect.succeed(undefined)
    const all: Array<ShardAddress> = []
    const items = value.split(",")
    for (const [index, text] of items.entries()) {
      const shard = parseShard(text.trim(), defaults)
      const wrong = (allowed: string) =>
        new ConfigInvalid({ variable: "POSTGRES_IPS", value: shownItem(items, index), allowed })
      if (shard === undefined) return Effect.fail(wrong(shardAllowed))
      if (all.some((other) => other.name === shard.name))
        return Effect.fail(wrong("every shard once, each with its own name"))
      all.push(shard)
    }
    return Effect.succeed(all)
  })

/** Append requests a minute that the load generator sends where its command says nothing. */
export const queriesPerMinute: Effect.Effect<number, ConfigInvalid> = parsed(
  "QUERIES_MIN",
  10,
  "appends a minute, 1 … 100000000",
  integer(1, 100_000_000),
)

/** Reads and checks every setting of a worker. */
export const settings: Effect.Effect<Settings, ConfigInvalid, FileSystem.FileSystem> = Effect.gen(function* () {
  const portNumbers = "a port, 1 … 65535"
  const defaults: ShardDefaults = {
    port: yield* parsed("POSTGRES_PORT", 5432, portNumbers, port),
    user: (yield* given("POSTGRES_USER")) ?? "objectlog",
    password: yield* secret("POSTGRES_PASSWORD", "objectlog"),
    database: (yield* given("POSTGRES_DB")) ?? "objectlog",
  }
  const topics: Topics = {
    logs: yield* topic("NATS_LOGS_TOPIC", "logs"),
    query: yield* topic("NATS_QUERY_TOPIC", "query"),
    response: yield* topic("NATS_RESPONSE_TOPIC", "response"),
    dead: yield* topic("NATS_DEAD_TOPIC", "dead"),
  }
  yield* disjoint(topics)
  const mode = yield* parsed("MODE", "release", "release or debug", (value) =>
    value === "release" || value === "debug" ? value : undefined,
  )
  return {
    natsUrl: yield* natsUrl,
    topics,
    replicas: yield* parsed("NATS_STREAM_REPLICAS", 1, "1, 3 or 5", (value) =>
      ["1", "3", "5"].includes(value) ? Number(value) : undefined,
    ),
    shards: yield* shards(defaults),
    autoMigrate: yield* parsed("POSTGRES_AUTOMIGRATE", true, "true or false", boolean),
    metricsPort: yield* parsed("METRICS_PORT", 2112, portNumbers, port),
    logLevel: yield* parsed("LOG_LEVEL", mode === "debug" ? "debug" : "info", logLevels.join(", "), (value) =>
      logLevels.find((level) => level === value),
    ),
    dataDir: (yield* given("DATA_DIR")) ?? ".objectlog",
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
      [parkedTopic(topics.logs), "where appends are set aside"],
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
