/** POSTGRES_IPS: the shards, in the order of the placement, and how each is reached. */
import { Effect, FileSystem, Redacted } from "effect"
import { ConfigInvalid, given, integer, parsed, secret, shownItem } from "./ConfigValue.ts"

/** How to reach one shard. */
export interface ShardSettings {
  readonly name: string
  readonly weight: number
  readonly host: string
  readonly port: number
  readonly user: string
  readonly password: Redacted.Redacted
  readonly database: string
  /** Without it nothing is encrypted. */
  readonly tls?: Tls | undefined
  readonly applicationName?: string | undefined
  readonly connectSeconds?: number | undefined
}

export interface Tls {
  /** As libpq's `sslmode`: encrypted; by a certificate that somebody trusted has signed; for this host. */
  readonly mode: "require" | "verify-ca" | "verify-full"
  /** Who is trusted, in PEM. Default: those that Node trusts. */
  readonly ca?: string | undefined
}

/** Of a connection, from the TCP handshake to a session that is fit; where the shard's URL says nothing else. */
export const connectSeconds = { default: 5, longest: 10 }

const port = integer(1, 65_535)

const namePattern = /^[A-Za-z0-9_.:[\]-]{1,128}$/

const shardAllowed =
  "shards as host, host:port or name=postgres://user:password@host:port/database?weight=2, parted by commas"

/** What a shard's URL may say behind its `?`, and what is allowed there. Nothing else: a misspelt option would be ignored. */
const options = {
  weight: "weight=N, above 0 and below 10000, with up to three decimals",
  sslmode: "sslmode=disable, require, verify-ca or verify-full",
  sslrootcert: "sslrootcert=FILE, a readable one, with sslmode=verify-ca or verify-full",
  application_name: "application_name=TEXT, of 1 … 63 printable ASCII characters",
  connect_timeout: `connect_timeout=SECONDS, 1 … ${connectSeconds.longest}`,
} as const

type Option = keyof typeof options

/** Not libpq's other ones: they mean plaintext where the server has no TLS. */
const sslModes = ["disable", "require", "verify-ca", "verify-full"] as const

const isOption = (name: string): name is Option => Object.hasOwn(options, name)

interface Defaults {
  readonly port: number
  readonly user: string
  readonly password: Redacted.Redacted
  readonly database: string
}

const defaults = Effect.gen(function* () {
  return {
    port: yield* parsed("POSTGRES_PORT", 5432, "a port, 1 … 65535", port),
    user: (yield* given("POSTGRES_USER")) ?? "objectlog",
    password: yield* secret("POSTGRES_PASSWORD", "objectlog"),
    database: (yield* given("POSTGRES_DB")) ?? "objectlog",
  }
})

/** `undefined` where none are given, and embedded ones are started. */
export const shards: Effect.Effect<ReadonlyArray<ShardSettings> | undefined, ConfigInvalid, FileSystem.FileSystem> =
  Effect.gen(function* () {
    const fallback = yield* defaults
    const value = yield* given("POSTGRES_IPS")
    if (value === undefined) return undefined
    const items = value.split(",")
    const wrong = (index: number, allowed: string, shown = shownItem(items, index)) =>
      new ConfigInvalid({ variable: "POSTGRES_IPS", value: shown, allowed })
    const places: Array<Place> = []
    for (const [index, text] of items.entries()) {
      const place = placeOf(text.trim(), fallback)
      if (place === undefined) return yield* wrong(index, shardAllowed)
      if (places.some(({ shard }) => shard.name === place.shard.name)) {
        return yield* wrong(index, "every shard once, each with its own name")
      }
      places.push(place)
    }
    // Only now, as what they say is shown: an item may be the beginning of a password that has a comma.
    return yield* Effect.forEach(places, ({ shard, url }, index) =>
      url === undefined
        ? Effect.succeed(shard)
        : Effect.map(
            optionsOf(url, (allowed, shown) => wrong(index, allowed, shown)),
            (found) => ({ ...shard, ...found }),
          ),
    )
  })

/** A shard, and the URL whose options are still to be read. */
interface Place {
  readonly shard: ShardSettings
  readonly url?: URL
}

/** `undefined` where it is malformed. A bare host is its own name. */
const placeOf = (text: string, fallback: Defaults): Place | undefined => {
  const named = /^([^=/]+)=(postgres(?:ql)?:\/\/.*)$/.exec(text)
  if (named === null) {
    const [host, portText, ...rest] = text.split(":")
    const shardPort = portText === undefined ? fallback.port : port(portText)
    if (host === undefined || !/^[A-Za-z0-9_.-]+$/.test(host) || rest.length > 0 || shardPort === undefined) {
      return undefined
    }
    return { shard: { ...fallback, name: text, weight: 1, host, port: shardPort } }
  }
  const name = named[1]!.trim()
  const url = URL.parse(named[2]!)
  if (url === null || url.hash !== "" || !namePattern.test(name)) return undefined
  const host = decoded(url.hostname.replace(/^\[(.*)\]$/, "$1"))
  const shardPort = url.port === "" ? fallback.port : port(url.port)
  const user = url.username === "" ? fallback.user : decoded(url.username)
  const password = url.password === "" ? Redacted.value(fallback.password) : decoded(url.password)
  const database = url.pathname.length <= 1 ? fallback.database : decoded(url.pathname.slice(1))
  if (!host || shardPort === undefined || user === undefined || password === undefined || database === undefined) {
    return undefined
  }
  return { shard: { name, weight: 1, host, port: shardPort, user, password: Redacted.make(password), database }, url }
}

/** `undefined` where a % doesn't begin an escape. */
const decoded = (text: string): string | undefined => {
  try {
    return decodeURIComponent(text)
  } catch {
    return undefined
  }
}

const optionsOf = Effect.fnUntraced(function* (
  url: URL,
  wrong: (allowed: string, shown: string | undefined) => ConfigInvalid,
) {
  // Where an address stands behind the `?`, a password ended there, and its rest is shown to nobody.
  const refuse = (allowed: string, shown: string) =>
    wrong(`${allowed} in a shard's URL`, url.search.includes("@") ? undefined : shown)
  const found = new Map<Option, string>()
  for (const [name, value] of url.searchParams) {
    if (!isOption(name)) return yield* refuse(`no options but ${Object.keys(options).join(", ")}`, name)
    if (found.has(name)) return yield* refuse(`each option once`, name)
    found.set(name, value)
  }
  /** `undefined` where it is not given. */
  const option = <A, E, R>(name: Option, parse: (value: string) => Effect.Effect<A | undefined, E, R>) => {
    const value = found.get(name)
    if (value === undefined) return Effect.succeed(undefined)
    return Effect.flatMap(parse(value), (result) =>
      result === undefined ? Effect.fail(refuse(options[name], `${name}=${value}`)) : Effect.succeed(result),
    )
  }
  const known =
    <A>(parse: (value: string) => A | undefined) =>
    (value: string) =>
      Effect.succeed(parse(value))
  const mode = yield* option(
    "sslmode",
    known((value) => sslModes.find((mode) => mode === value)),
  )
  const ca = yield* option("sslrootcert", (file) => (mode?.startsWith("verify-") ? readText(file) : noText))
  return {
    weight: (yield* option("weight", known(weightOf))) ?? 1,
    tls: mode === undefined || mode === "disable" ? undefined : { mode, ca },
    applicationName: yield* option(
      "application_name",
      known((value) => (/^[\x20-\x7e]{1,63}$/.test(value) ? value : undefined)),
    ),
    connectSeconds: yield* option("connect_timeout", known(integer(1, connectSeconds.longest))),
  }
})

const weightOf = (text: string): number | undefined =>
  /^\d{1,4}(?:\.\d{1,3})?$/.test(text) && Number(text) > 0 ? Number(text) : undefined

const noText = Effect.succeed(undefined)

const readText = (file: string) =>
  Effect.flatMap(FileSystem.FileSystem, (fs) => Effect.catch(fs.readFileString(file), () => noText))
