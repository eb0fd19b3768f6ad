/** The variables of the OpenTelemetry specification: their defaults, which one wins, and that no secret is shown. */
import { assert, describe, it } from "@effect/vitest"
import { ConfigProvider, Effect, Redacted } from "effect"
import { inspect } from "node:util"
import { tracingSettings } from "../../src/config/TracingSettings.ts"
import * as Sampler from "../../src/trace/Sampler.ts"

type Environment = Record<string, string>

const read = (env: Environment) =>
  Effect.provide(tracingSettings, ConfigProvider.layer(ConfigProvider.fromEnv({ env })))

const endpoint = { OTEL_EXPORTER_OTLP_ENDPOINT: "http://collector:4318" }
const on = (env: Environment) => Effect.map(read({ ...endpoint, ...env }), (found) => found!)
const message = (env: Environment) => Effect.map(Effect.flip(read({ ...endpoint, ...env })), (error) => error.message)

describe("without an endpoint", () => {
  it.effect("there are no traces, and nothing else is looked at", () =>
    Effect.gen(function* () {
      assert.isUndefined(yield* read({}))
      assert.isUndefined(yield* read({ OTEL_TRACES_SAMPLER: "wrong", OTEL_EXPORTER_OTLP_ENDPOINT: "" }))
    }),
  )

  it.effect("nor where they are switched off", () =>
    Effect.gen(function* () {
      assert.isUndefined(yield* read({ ...endpoint, OTEL_SDK_DISABLED: "True" }))
      assert.isDefined(yield* read({ ...endpoint, OTEL_SDK_DISABLED: "false" }))
      assert.isUndefined(yield* read({ ...endpoint, OTEL_TRACES_EXPORTER: "none" }))
    }),
  )
})

describe("with an endpoint", () => {
  it.effect("the defaults are those of the specification", () =>
    Effect.gen(function* () {
      const { headers, sampling, ...found } = yield* on({})
      assert.deepStrictEqual(found, {
        url: "http://collector:4318/v1/traces",
        protocol: "http/protobuf",
        compression: "none",
        timeoutMillis: 10_000,
        delayMillis: 5_000,
        batchSpansMax: 512,
        queueSpansMax: 2_048,
        serviceName: "objectlog",
        resource: {},
      })
      assert.deepStrictEqual(Redacted.value(headers), {})
      const sampler = Sampler.make(sampling)
      assert.isDefined(sampler.begins())
      assert.isFalse(sampler.follows({ traceId: "1".repeat(32), spanId: "1".repeat(16), sampled: false }))
    }),
  )

  it.effect("what is said of traces wins", () =>
    Effect.gen(function* () {
      const found = yield* on({
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: "https://traces/here",
        OTEL_EXPORTER_OTLP_PROTOCOL: "http/protobuf",
        OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: "http/json",
        OTEL_EXPORTER_OTLP_COMPRESSION: "gzip",
        OTEL_EXPORTER_OTLP_TIMEOUT: "20000",
        OTEL_EXPORTER_OTLP_TRACES_TIMEOUT: "3000",
        OTEL_EXPORTER_OTLP_HEADERS: "a=1",
        OTEL_EXPORTER_OTLP_TRACES_HEADERS: "b=2%2C3, c = d=e",
      })
      assert.deepInclude(found, {
        url: "https://traces/here",
        protocol: "http/json",
        compression: "gzip",
        timeoutMillis: 3_000,
      })
      assert.deepStrictEqual(Redacted.value(found.headers), { b: "2,3", c: "d=e" })
      assert.strictEqual((yield* on({ OTEL_EXPORTER_OTLP_ENDPOINT: "http://c/otlp/" })).url, "http://c/otlp/v1/traces")
      assert.strictEqual((yield* on({ OTEL_BSP_EXPORT_TIMEOUT: "7" })).timeoutMillis, 7)
    }),
  )

  it.effect("the service is named by its variable, or by the resource", () =>
    Effect.gen(function* () {
      const resource = { OTEL_RESOURCE_ATTRIBUTES: "service.name=log%20keeper,host.name=h" }
      assert.strictEqual((yield* on(resource)).serviceName, "log keeper")
      const both = yield* on({ ...resource, OTEL_SERVICE_NAME: "named" })
      assert.strictEqual(both.serviceName, "named")
      assert.strictEqual(both.resource["host.name"], "h")
    }),
  )

  it.effect("the sampler and its share", () =>
    Effect.gen(function* () {
      const sampled = (env: Environment) =>
        Effect.map(on(env), ({ sampling }) => {
          const sampler = Sampler.make(sampling)
          return [
            sampler.begins() !== undefined,
            sampler.follows({ traceId: `${"1".repeat(16)}${"0".repeat(16)}`, spanId: "1".repeat(16), sampled: true }),
            sampler.follows({ traceId: `${"1".repeat(16)}${"f".repeat(16)}`, spanId: "1".repeat(16), sampled: false }),
          ]
        })
      const arg = { OTEL_TRACES_SAMPLER_ARG: "0" }
      assert.deepStrictEqual(yield* sampled({ OTEL_TRACES_SAMPLER: "always_on" }), [true, true, true])
      assert.deepStrictEqual(yield* sampled({ OTEL_TRACES_SAMPLER: "always_off" }), [false, false, false])
      assert.deepStrictEqual(yield* sampled({ OTEL_TRACES_SAMPLER: "parentbased_always_on" }), [true, true, false])
      assert.deepStrictEqual(yield* sampled({ OTEL_TRACES_SAMPLER: "parentbased_always_off" }), [false, true, false])
      assert.deepStrictEqual(yield* sampled({ OTEL_TRACES_SAMPLER: "traceidratio", ...arg }), [false, false, false])
      assert.deepStrictEqual(yield* sampled({ OTEL_TRACES_SAMPLER: "parentbased_traceidratio", ...arg }), [
        false,
        true,
        false,
      ])
      assert.deepStrictEqual(yield* sampled({ OTEL_TRACES_SAMPLER: "traceidratio" }), [true, true, true])
    }),
  )
})

describe("a value that cannot be served", () => {
  for (const [env, expected] of [
    [
      { OTEL_EXPORTER_OTLP_PROTOCOL: "grpc" },
      'OTEL_EXPORTER_OTLP_PROTOCOL: expected http/protobuf or http/json, got "grpc"',
    ],
    [
      { OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: "grpc" },
      'OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: expected http/protobuf or http/json, got "grpc"',
    ],
    [
      { OTEL_EXPORTER_OTLP_ENDPOINT: "collector:4318" },
      'OTEL_EXPORTER_OTLP_ENDPOINT: expected http://host:port or https://host:port, without credentials, got "collector:4318"',
    ],
    [{ OTEL_TRACES_EXPORTER: "zipkin" }, 'OTEL_TRACES_EXPORTER: expected otlp or none, got "zipkin"'],
    [{ OTEL_SDK_DISABLED: "yes" }, 'OTEL_SDK_DISABLED: expected true or false, got "yes"'],
    [
      { OTEL_TRACES_SAMPLER: "toString" },
      'OTEL_TRACES_SAMPLER: expected always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off, parentbased_traceidratio, got "toString"',
    ],
    [
      { OTEL_TRACES_SAMPLER: "traceidratio", OTEL_TRACES_SAMPLER_ARG: "1.5" },
      'OTEL_TRACES_SAMPLER_ARG: expected a number, 0 … 1, got "1.5"',
    ],
    [
      { OTEL_BSP_MAX_EXPORT_BATCH_SIZE: "100", OTEL_BSP_MAX_QUEUE_SIZE: "50" },
      'OTEL_BSP_MAX_EXPORT_BATCH_SIZE: expected a number, 1 … 50, which is OTEL_BSP_MAX_QUEUE_SIZE, got "100"',
    ],
    [
      { OTEL_EXPORTER_OTLP_CERTIFICATE: "/ca.pem" },
      'OTEL_EXPORTER_OTLP_CERTIFICATE: expected nothing; Node reads NODE_EXTRA_CA_CERTS, got "/ca.pem"',
    ],
    [
      { OTEL_RESOURCE_ATTRIBUTES: "a" },
      'OTEL_RESOURCE_ATTRIBUTES: expected name=value, parted by commas, values percent-encoded, got "a"',
    ],
  ] as const) {
    it.effect(Object.entries(env).join(" "), () =>
      Effect.map(message(env), (text) => assert.strictEqual(text, expected)),
    )
  }

  it.effect("is not shown where it may be secret", () =>
    Effect.gen(function* () {
      for (const env of [
        { OTEL_EXPORTER_OTLP_HEADERS: "s3cret" },
        { OTEL_EXPORTER_OTLP_TRACES_HEADERS: "authorization=s3cret%0d%0ax: y" },
        { OTEL_EXPORTER_OTLP_HEADERS: "authorization=s3cret%" },
        { OTEL_EXPORTER_OTLP_ENDPOINT: "http://user:s3cret@collector" },
      ]) {
        const text = yield* message(env)
        assert.notInclude(text, "s3cret")
        assert.include(text, "<redacted>")
      }
      assert.notInclude(inspect(yield* on({ OTEL_EXPORTER_OTLP_HEADERS: "authorization=s3cret" }), false, 9), "s3cret")
    }),
  )
})
