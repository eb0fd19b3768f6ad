/** The whole service on brokers that take less and more than usual: what is at the limit is stored and read, what is beyond refused. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { TestPostgres } from "../../bench/servers/privateServers.ts"
import { ConfiguredNats } from "../embedded/ConfiguredNats.ts"
import { ForeignClient } from "../foreign/ForeignClient.ts"
import { startWorker } from "./service.ts"

const serviceWith = (maxPayload: number) => {
  const server = Layer.effect(
    NatsServer,
    Effect.gen(function* () {
      const configured = yield* ConfiguredNats
      yield* configured.start(`max_payload: ${maxPayload}\nmax_pending: ${16 * maxPayload}`)
      return { url: configured.url() } as NatsServer["Service"]
    }),
  ).pipe(Layer.provide(ConfiguredNats.layer))
  return ForeignClient.layer.pipe(
    Layer.provideMerge(Layer.effectDiscard(startWorker)),
    Layer.provideMerge(Layer.mergeAll(server, TestPostgres.layer(1))),
  )
}

const mebibyte = 1024 ** 2

describe("max_payload", () => {
  for (const maxPayload of [32 * 1024, mebibyte - 1, 4 * mebibyte, 8 * mebibyte]) {
    it.live(
      `of ${maxPayload} bytes`,
      () =>
        Effect.gen(function* () {
          const client = yield* ForeignClient
          assert.strictEqual(client.connection.info!.max_payload, maxPayload)
          const append = (log: string) => client.append(JSON.stringify({ id: 7, log }))
          // With its quotes, and 2,048 bytes for what is around it.
          const longest = maxPayload - 2_048 - 2
          const logs = ["x".repeat(longest), "ä".repeat(Math.floor(longest / 2)), "short"]
          for (const [index, log] of logs.entries()) {
            const { body } = yield* append(log)
            assert.strictEqual(body.position, index + 1, JSON.stringify(body.error))
          }
          for (const log of ["x".repeat(longest + 1), `${"ä".repeat(Math.floor(longest / 2))}xx`]) {
            assert.strictEqual((yield* append(log)).body.error?.code, "log_too_large")
          }
          const pages = yield* client.read('{"id":7}')
          assert.isTrue(
            pages.flatMap(({ body }) => body.entries ?? []).every(({ log }, index) => log === logs[index]),
            "every character comes back",
          )
          assert.isAtLeast(pages.length, 2)
          for (const { text } of pages) assert.isAtMost(Buffer.byteLength(text), maxPayload)
          // Many short ones fill pages to their limit: their commas count too.
          const count = Math.floor((3 * Math.min(maxPayload, mebibyte)) / 80)
          for (let i = 0; i < count; i++) yield* client.publish("logs", `{"id":8,"log":""}`)
          for (let i = 0; i < count; i++) yield* client.next
          const many = yield* client.read('{"id":8}')
          for (const { text } of many) assert.isAtMost(Buffer.byteLength(text), maxPayload)
          assert.strictEqual(many.flatMap(({ body }) => body.entries ?? []).length, count)
        }).pipe(Effect.scoped, Effect.provide(serviceWith(maxPayload))),
      60_000,
    )
  }
})
