/**
 * Every setting has the documented default; a wrong value stops the start with one error that names the variable, the
 * value and what is allowed; no secret ever stands in such an error.
 */
import { NodeFileSystem } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Arbitrary, ConfigProvider, Effect, FileSystem, Layer, Redacted } from "effect"
import { inspect } from "node:util"
import { ConfigInvalid, settings } from "../../src/config/Config.ts"
import * as draw from "../contract/arbitraries.ts"

type Environment = Record<string, string>

const read = (env: Environment) =>
  settings.pipe(
    Effect.provide(Layer.merge(ConfigProvider.layer(ConfigProvider.fromEnv({ env })), NodeFileSystem.layer)),
  )

const problem = (env: Environment) => Effect.flip(read(env))

/** The error of `env` as its reader sees it. */
const message = (env: Environment) => Effect.map(problem(env), (error) => error.message)

const subject = "a NATS subject of letters, digits, _ and -, parted by dots"
const ports = "a port, 1 … 65535"
const nats = "host:port, nats://host:port or tls://host:port, several parted by commas"
const shards =
  "shards as host, host:port or name=postgres://user:password@host:port/database?weight=2, parted by commas"

describe("defaults", () => {
  const check = (env: Environment) =>
    Effect.map(read(env), (found) =>
      assert.deepStrictEqual(found, {
        natsUrl: undefined,
        topics: { logs: "logs", query: "query", response: "response", dead: "dead" },
        replicas: 1,
        shards: undefined,
        autoMigrate: true,
        metricsPort: 2112,
        logLevel: "info",
        dataDir: ".objectlog",
        metricsHost: "127.0.0.1",
        tracing: undefined,
      }),
    )

  it.effect("an empty environment", () => check({}))

  it.effect("variables set to nothing count as missing", () =>
    check({ NATS_URL: "", POSTGRES_IPS: "", POSTGRES_PASSWORD: "", METRICS_PORT: "", MODE: "", DATA_DIR: "" }),
  )

  it.effect("a shard by host gets the defaults of user, password, database and port", () =>
    Effect.gen(function* () {
      const [shard] = (yield* read({ POSTGRES_IPS: "10.0.0.1" })).shards ?? []
      assert.deepStrictEqual(shard && { ...shard, password: Redacted.value(shard.password) }, {
        name: "10.0.0.1",
        weight: 1,
        host: "10.0.0.1",
        port: 5432,
        user: "objectlog",
        password: "objectlog",
        database: "objectlog",
      })
    }),
  )
})

it.effect("every variable is read", () =>
  Effect.gen(function* () {
    const found = yield* read({
      NATS_URL: "n1:4222, nats://u:p@n2:4222,tls://n3",
      NATS_LOGS_TOPIC: "a.logs",
      NATS_QUERY_TOPIC: "a.query",
      NATS_RESPONSE_TOPIC: "a.response",
      NATS_DEAD_TOPIC: "a.dead-1_x",
      NATS_STREAM_REPLICAS: "3",
      POSTGRES_IPS: "h1,h2:6000",
      POSTGRES_PORT: "5433",
      POSTGRES_USER: "me",
      POSTGRES_PASSWORD: " p w ",
      POSTGRES_DB: "db",
      POSTGRES_AUTOMIGRATE: "false",
      METRICS_HOST: "::",
      METRICS_PORT: " 65535 ",
      MODE: "debug",
      DATA_DIR: "/data",
    })
    assert.strictEqual(found.natsUrl && Redacted.value(found.natsUrl), "n1:4222, nats://u:p@n2:4222,tls://n3")
    assert.deepStrictEqual(found.topics, {
      logs: "a.logs",
      query: "a.query",
      response: "a.response",
      dead: "a.dead-1_x",
    })
    assert.strictEqual(found.replicas, 3)
    assert.strictEqual(found.autoMigrate, false)
    assert.strictEqual(found.metricsHost, "::")
    assert.strictEqual(found.metricsPort, 65_535)
    assert.strictEqual(found.logLevel, "debug")
    assert.strictEqual(found.dataDir, "/data")
    assert.deepStrictEqual(
      found.shards?.map((shard) => [
        shard.name,
        shard.host,
        shard.port,
        shard.user,
        Redacted.value(shard.password),
        shard.database,
      ]),
      [
        ["h1", "h1", 5433, "me", " p w ", "db"],
        ["h2:6000", "h2", 6000, "me", " p w ", "db"],
      ],
    )
  }),
)

const wrong: ReadonlyArray<readonly [variable: string, allowed: string, values: ReadonlyArray<string>]> = [
  ["METRICS_PORT", ports, ["0", "65536", "x", "-1", "1.5", "1e3", " ", "0x50", "9999999999"]],
  ["METRICS_HOST", "an IP address, such as 0.0.0.0 for all of this machine", ["localhost", "*", "1.2.3", "[::]"]],
  ["POSTGRES_PORT", ports, ["0", "65536", "five"]],
  ["NATS_STREAM_REPLICAS", "1, 3 or 5", ["0", "2", "4", "7", "x", "03"]],
  ["POSTGRES_AUTOMIGRATE", "true or false", ["yes", "1", "TRUE"]],
  ["MODE", "release or debug", ["trace", "Debug"]],
  ["LOG_LEVEL", "debug, info, warn, error, off", ["INFO", "trace", "warning", "0"]],
  ...["NATS_LOGS_TOPIC", "NATS_QUERY_TOPIC", "NATS_RESPONSE_TOPIC", "NATS_DEAD_TOPIC"].map(
    (variable) =>
      [
        variable,
        subject,
        ["a b", "a.*", ">", ".a", "a.", "a..b", "$JS.API", "_INBOX.x", "é", "x".repeat(129)],
      ] as const,
  ),
  ["NATS_URL", nats, ["http://h:1", "h:port", "h:65536", ":4222", "nats://", " "]],
  ["POSTGRES_IPS", shards, ["h:0", "h:65536", "h:x", "h:", ":5432", "h:1:2", "::1", "a b", "h/db", "s=mysql://h/db"]],
  [
    "POSTGRES_IPS",
    shards,
    ["=postgres://h/db", "s=postgres://", "s=postgres://h:0/db", "s=postgres://h:x/db", "é=postgres://h/db"],
  ],
]

describe("wrong values", () => {
  for (const [variable, allowed, values] of wrong) {
    it.effect(`${variable}: ${values.length} values`, () =>
      Effect.gen(function* () {
        for (const value of values) {
          const shown = variable === "NATS_URL" || variable === "POSTGRES_IPS" ? value.trim() : value
          const error = yield* problem({ [variable]: value })
          assert.instanceOf(error, ConfigInvalid)
          assert.deepStrictEqual([error.variable, error.value, error.allowed], [variable, shown, allowed])
          assert.strictEqual(error.message, `${variable}: expected ${allowed}, got ${JSON.stringify(shown)}`)
        }
      }),
    )
  }

  it.effect("a list names the item that is wrong", () =>
    Effect.gen(function* () {
      assert.strictEqual(yield* message({ NATS_URL: "a:1, b:x ,c:1" }), `NATS_URL: expected ${nats}, got "b:x"`)
      assert.strictEqual(yield* message({ NATS_URL: "a?tls=true" }), `NATS_URL: expected ${nats}, got "a?tls=true"`)
      assert.strictEqual(
        yield* message({ NATS_URL: "nats://u:secret@a,nats://u:other@b" }),
        'NATS_URL: expected the same user and password, or token, for all servers, got "<redacted>, item 2"',
      )
      assert.strictEqual(yield* message({ NATS_URL: "a:1,,c:1" }), `NATS_URL: expected ${nats}, got ""`)
      assert.strictEqual(yield* message({ POSTGRES_IPS: "a,,b" }), `POSTGRES_IPS: expected ${shards}, got ""`)
      assert.strictEqual(yield* message({ POSTGRES_IPS: "a,b:x" }), `POSTGRES_IPS: expected ${shards}, got "b:x"`)
      assert.strictEqual(yield* message({ POSTGRES_IPS: "a," }), `POSTGRES_IPS: expected ${shards}, got ""`)
    }),
  )
})

describe("shards", () => {
  it.effect("by URL: its parts win over the defaults", () =>
    Effect.gen(function* () {
      const found = yield* read({
        POSTGRES_USER: "me@x%41",
        POSTGRES_PASSWORD: "p%41@:/?#",
        POSTGRES_DB: "d%41?b#",
        POSTGRES_PORT: "6000",
        POSTGRES_IPS: [
          "a=postgres://u:s%40cret@h1:7000/one?weight=2.5&sslmode=require",
          "b=postgresql://h2",
          "c:5432=postgres://u@[::1]/three?weight=0.001",
          "d=postgres://%2Frun%2Fpostgresql/four?sslmode=disable&application_name=a%20b&connect_timeout=10",
        ].join(" , "),
      })
      const common = { user: "me@x%41", password: "p%41@:/?#", database: "d%41?b#", port: 6000, weight: 1 }
      const options = { tls: undefined, applicationName: undefined, connectSeconds: undefined }
      assert.deepStrictEqual(
        found.shards?.map((shard) => ({ ...shard, password: Redacted.value(shard.password) })),
        [
          {
            ...options,
            name: "a",
            weight: 2.5,
            host: "h1",
            port: 7000,
            user: "u",
            password: "s@cret",
            database: "one",
            tls: { mode: "require", ca: undefined },
          },
          { ...common, ...options, name: "b", host: "h2" },
          { ...common, ...options, name: "c:5432", weight: 0.001, host: "::1", user: "u", database: "three" },
          {
            ...common,
            ...options,
            name: "d",
            host: "/run/postgresql",
            database: "four",
            applicationName: "a b",
            connectSeconds: 10,
          },
        ],
      )
    }),
  )

  /** The error of a shard with these options. */
  const refusal = (options: string) => message({ POSTGRES_IPS: `a,s=postgres://u:hunter2@h/db?${options}` })

  it.effect("an option that is unknown is named", () =>
    Effect.gen(function* () {
      const known = "weight, sslmode, sslrootcert, application_name, connect_timeout"
      for (const option of ["ssl", "sslMode", "sslmod", "ssl_mode", "sslcert", "options", "host", "password", ""]) {
        assert.strictEqual(
          yield* refusal(`weight=2&${option}=hunter2`),
          `POSTGRES_IPS: expected no options but ${known} in a shard's URL, got "${option}"`,
        )
      }
      assert.strictEqual(
        yield* refusal("sslmode=require&sslmode=disable"),
        `POSTGRES_IPS: expected each option once in a shard's URL, got "sslmode"`,
      )
    }),
  )

  it.effect("an option's value is shown with what is allowed", () =>
    Effect.gen(function* () {
      for (const [name, allowed, values] of [
        ["weight", "=N, above 0 and below 10000, with up to three decimals", "0,-1,x,,1e3,0.0001,10000"],
        ["sslmode", "=disable, require, verify-ca or verify-full", "reqiure,prefer,allow,REQUIRE,true,"],
        ["connect_timeout", "=SECONDS, 1 … 10", "abc,0,11,1.5,-1,"],
        ["application_name", "=TEXT, of 1 … 63 printable ASCII characters", `,é,${"x".repeat(64)}`],
        ["sslrootcert", "=FILE, a readable one, with sslmode=verify-ca or verify-full", "/nowhere,"],
      ] as const) {
        // A file alone would be ignored: that is refused too.
        for (const before of name === "sslrootcert" ? ["", "sslmode=require&", "sslmode=verify-full&"] : [""]) {
          for (const value of values.replace(/,/g, "\n").split("\n")) {
            assert.strictEqual(
              yield* refusal(`${before}${name}=${value}`),
              `POSTGRES_IPS: expected ${name}${allowed} in a shard's URL, got "${name}=${value}"`,
            )
          }
        }
      }
    }),
  )

  it.effect("who signs certificates comes from a file", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const file = yield* fs.makeTempFileScoped()
      yield* fs.writeFileString(file, "PEM")
      for (const mode of ["verify-ca", "verify-full"] as const) {
        const found = yield* read({ POSTGRES_IPS: `s=postgres://h?sslmode=${mode}&sslrootcert=${file}` })
        assert.deepStrictEqual(found.shards?.[0]?.tls, { mode, ca: "PEM" })
      }
    }).pipe(Effect.provide(NodeFileSystem.layer)),
  )

  it.effect("names are unique", () =>
    Effect.gen(function* () {
      const allowed = "every shard once, each with its own name"
      assert.strictEqual(yield* message({ POSTGRES_IPS: "h,h" }), `POSTGRES_IPS: expected ${allowed}, got "h"`)
      assert.strictEqual(
        yield* message({ POSTGRES_IPS: "s=postgres://h1,s=postgres://h2" }),
        `POSTGRES_IPS: expected ${allowed}, got "s=postgres://h2"`,
      )
      assert.strictEqual(
        yield* message({ POSTGRES_IPS: "s=postgres://u:p@h1,s=postgres://u:p@h2" }),
        `POSTGRES_IPS: expected ${allowed}, got "<redacted>, item 2"`,
      )
    }),
  )

  it.effect("a % that begins no escape is a typed error, not a defect", () =>
    Effect.gen(function* () {
      for (const url of ["u:50%@h/db", "%zz:p@h/db", "u:p@h/%ff"]) {
        assert.strictEqual(
          yield* message({ POSTGRES_IPS: `s=postgres://${url}` }),
          `POSTGRES_IPS: expected ${shards}, got "<redacted>, item 1"`,
        )
      }
    }),
  )
})

describe("topics", () => {
  const disjoint = (other: string) => `a subject that is not ${other} or below it`

  it.effect("must not overlap", () =>
    Effect.gen(function* () {
      assert.strictEqual(
        yield* message({ NATS_QUERY_TOPIC: "logs" }),
        `NATS_LOGS_TOPIC: expected ${disjoint("NATS_QUERY_TOPIC")}, got "logs"`,
      )
      assert.strictEqual(
        yield* message({ NATS_QUERY_TOPIC: "response.query" }),
        `NATS_QUERY_TOPIC: expected ${disjoint("NATS_RESPONSE_TOPIC")}, got "response.query"`,
      )
      assert.strictEqual(
        yield* message({ NATS_LOGS_TOPIC: "a", NATS_DEAD_TOPIC: "a.dead" }),
        `NATS_DEAD_TOPIC: expected ${disjoint("NATS_LOGS_TOPIC")}, got "a.dead"`,
      )
    }),
  )

  it.effect("may share a beginning that is no token", () =>
    Effect.gen(function* () {
      const { topics } = yield* read({ NATS_QUERY_TOPIC: "logs2", NATS_DEAD_TOPIC: "x.logs" })
      assert.strictEqual(topics.query, "logs2")
    }),
  )
})

describe("secrets", () => {
  const password = (env: Environment) =>
    Effect.map(read({ ...env, POSTGRES_IPS: "h" }), ({ shards }) => Redacted.value(shards![0]!.password))

  it.effect("come from a file too, without its final newline", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const file = yield* fs.makeTempFileScoped()
      for (const [content, expected] of [
        ["secret", "secret"],
        ["secret\n", "secret"],
        ["secret\r\n", "secret"],
        ["secret\n\n", "secret\n"],
        [" secret \n", " secret "],
        ["", ""],
      ] as const) {
        yield* fs.writeFileString(file, content)
        assert.strictEqual(yield* password({ POSTGRES_PASSWORD_FILE: file }), expected)
      }
    }).pipe(Effect.provide(NodeFileSystem.layer)),
  )

  it.effect("come from one place", () =>
    Effect.gen(function* () {
      assert.strictEqual(
        yield* message({ POSTGRES_PASSWORD: "hunter2", POSTGRES_PASSWORD_FILE: "/run/pw" }),
        'POSTGRES_PASSWORD_FILE: expected only one of POSTGRES_PASSWORD and POSTGRES_PASSWORD_FILE, got "/run/pw"',
      )
    }),
  )

  it.effect("an unreadable file is named", () =>
    Effect.gen(function* () {
      for (const file of ["/nowhere/pw", "/"]) {
        assert.strictEqual(
          yield* message({ POSTGRES_PASSWORD_FILE: file }),
          `POSTGRES_PASSWORD_FILE: expected a readable file, got "${file}"`,
        )
      }
    }),
  )

  it.effect("settings print without them", () =>
    Effect.gen(function* () {
      const found = yield* read({
        NATS_URL: "nats://u:hunter2@h",
        POSTGRES_PASSWORD: "hunter2",
        POSTGRES_IPS: "h,s=postgres://u:hunter2@h/db",
      })
      assert.notInclude(JSON.stringify(found), "hunter2")
      assert.notInclude(inspect(found, { depth: 9 }), "hunter2")
    }),
  )

  /** Six letters that occur in no text of ours, with the characters that end a password, a host or an item between. */
  const secret = Arbitrary.map(
    Arbitrary.all([
      Arbitrary.array(draw.pick(["QZ", "XJ", "@", ",", ":", "/", "%", "?", "#", "=", "//", "é"]), { maxLength: 6 }),
    ]),
    ([parts]) => `KWV${parts.join("")}VWK`,
  )

  it.effect.prop(
    "no part of a password stands in an error",
    [secret],
    ([value]) =>
      Effect.gen(function* () {
        for (const env of [
          { NATS_URL: `nats://u:${value}@h:bad` },
          { NATS_URL: `u:${value}@h:bad` },
          { NATS_URL: `nats://u:${value}@h:4222,b:bad` },
          { NATS_URL: `http://u:${value}@h` },
          { NATS_URL: `${value}@h:bad` },
          { POSTGRES_IPS: `s=postgres://u:${value}@h:bad/db` },
          { POSTGRES_IPS: `s=postgres://u:${value}@h/db?weight=0` },
          { POSTGRES_IPS: `s=postgres://u:${value}@h/db?sslMode=require` },
          { POSTGRES_IPS: `s=postgres://u:1?${value}@h/db` },
          { POSTGRES_IPS: `s=postgres://u:a@b?${value}@h/db` },
          { POSTGRES_IPS: `s=postgres://h:bad/db?password=${value}` },
          { POSTGRES_IPS: `s=postgres://u:${value}@h/db,s=postgres://u:${value}@h/db` },
          { POSTGRES_IPS: `postgres://u:${value}@h/db` },
          { POSTGRES_IPS: `u:${value}@h` },
          { POSTGRES_PASSWORD: value, POSTGRES_IPS: "h:bad" },
          { POSTGRES_PASSWORD: value, POSTGRES_PASSWORD_FILE: "/run/pw" },
        ]) {
          // Some of these passwords make a valid list by chance; the port then gives the error.
          const error = yield* problem({ ...env, METRICS_PORT: "0" })
          for (const text of [error.message, String(error), JSON.stringify(error), error.stack ?? ""]) {
            for (const part of ["KWV", "VWK", "QZ", "XJ"]) assert.notInclude(text, part)
          }
        }
      }),
    { arbitrary: { runs: 300 } },
  )
})
