/**
 * A TCP proxy on loopback that can do to connections what networks do: cut them, stall them, slow them down, or leave one
 * end in the belief that the other is still there.
 */
import { Effect, type Scope } from "effect"
import { createServer, connect, type AddressInfo, type Socket } from "node:net"

export type LinkState =
  | { readonly kind: "open" }
  /** Connections are reset, and new ones too. */
  | { readonly kind: "cut" }
  /** Connections stay, and new ones are accepted; no byte gets through until the link is open again. */
  | { readonly kind: "stalled" }
  /** Every chunk takes so long, and so many bytes pass in a second. */
  | { readonly kind: "slow"; readonly latencyMillis: number; readonly bytesPerSecond: number }
  /** The server's end is gone, and the client is never told: what it sends, then and later, is swallowed. */
  | { readonly kind: "client half-open" }
  /** The client's end is gone. The server is told only when the link opens again, as by its keep-alives. */
  | { readonly kind: "server half-open" }

export interface TcpProxy {
  readonly port: number
  readonly set: (state: LinkState) => void
  /** New connections go to another port of this machine, as after a failover; those that are there stay. */
  readonly lead: (target: number) => void
}

const host = "127.0.0.1"

/** What one direction holds back before its source has to wait, in bytes. */
const heldMax = 256 * 1024

/** One direction of a connection. */
class Direction {
  readonly #source: Socket
  readonly #target: Socket
  readonly #state: () => LinkState
  #held: Array<Buffer> = []
  #heldBytes = 0
  #timer: NodeJS.Timeout | undefined
  #ended = false

  constructor(source: Socket, target: Socket, state: () => LinkState) {
    this.#source = source
    this.#target = target
    this.#state = state
    source.on("data", (chunk: Buffer) => {
      this.#held.push(chunk)
      this.#heldBytes += chunk.length
      if (this.#heldBytes > heldMax) source.pause()
      this.pump()
    })
    source.on("end", () => {
      this.#ended = true
      this.pump()
    })
    target.on("drain", () => this.pump())
  }

  /** Passes on what the link lets through now. */
  pump(): void {
    const state = this.#state()
    if (this.#timer !== undefined || state.kind === "stalled" || this.#target.destroyed) return
    if (state.kind === "slow" && this.#held.length > 0) {
      const millis = state.latencyMillis + (this.#held[0]!.length / state.bytesPerSecond) * 1_000
      this.#timer = setTimeout(() => {
        this.#timer = undefined
        this.#pass()
        this.pump()
      }, millis)
      return
    }
    while (this.#held.length > 0 && !this.#target.writableNeedDrain) this.#pass()
    if (this.#heldBytes <= heldMax / 2 && this.#source.isPaused()) this.#source.resume()
    if (this.#ended && this.#held.length === 0) this.#target.end()
  }

  #pass(): void {
    const chunk = this.#held.shift()
    if (chunk === undefined || this.#target.destroyed) return
    this.#heldBytes -= chunk.length
    this.#target.write(chunk)
  }

  close(): void {
    clearTimeout(this.#timer)
    this.#held = []
  }
}

/** Both directions. Which end was left behind, if one was, decides what happens to the other. */
class Connection {
  readonly client: Socket
  readonly server: Socket
  readonly #directions: ReadonlyArray<Direction>
  #apart = false

  constructor(client: Socket, port: number, state: () => LinkState, closed: () => void) {
    this.client = client
    this.server = connect({ host, port, noDelay: true })
    client.setNoDelay(true)
    this.#directions = [new Direction(client, this.server, state), new Direction(this.server, client, state)]
    for (const [end, other] of [
      [client, this.server],
      [this.server, client],
    ] as const) {
      end.on("error", () => undefined)
      end.on("close", (hadError) => {
        if (!this.#apart && (hadError || state().kind !== "stalled")) {
          if (hadError) other.resetAndDestroy()
          else other.destroySoon()
        }
        if (this.client.destroyed && this.server.destroyed) {
          for (const direction of this.#directions) direction.close()
          closed()
        }
      })
    }
  }

  pump(): void {
    for (const direction of this.#directions) direction.pump()
  }

  cut(): void {
    this.client.resetAndDestroy()
    this.server.resetAndDestroy()
  }

  /** Takes one end away and leaves the other in the dark. A client that is left may go on sending. */
  leave(end: "client" | "server"): void {
    this.#apart = true
    for (const direction of this.#directions) direction.close()
    if (end === "client") {
      this.client.removeAllListeners("data")
      this.client.resume()
      this.server.destroy()
    } else {
      this.server.pause()
      this.client.resetAndDestroy()
    }
  }
}

/** Forwards to a port of this machine until the scope closes. */
export const makeProxy = (target: number): Effect.Effect<TcpProxy, never, Scope.Scope> =>
  Effect.gen(function* () {
    let state: LinkState = { kind: "open" }
    let leadsTo = target
    const targets = new Set([target])
    const connections = new Set<Connection>()
    /** Ends that were left in the dark: of clients until they give up, of servers until the link opens again. */
    const left = new Set<Socket>()
    const keep = (socket: Socket) => {
      left.add(socket)
      socket.on("error", () => undefined)
      socket.on("close", () => left.delete(socket))
    }
    const server = createServer((client) => {
      if (state.kind === "cut" || state.kind === "server half-open") {
        client.on("error", () => undefined)
        client.resetAndDestroy()
      } else if (state.kind === "client half-open") {
        keep(client)
        client.resume()
      } else {
        const connection = new Connection(
          client,
          leadsTo,
          () => state,
          () => connections.delete(connection),
        )
        connections.add(connection)
      }
    })
    yield* Effect.acquireRelease(
      Effect.callback<void>((resume) => void server.listen(0, host, () => resume(Effect.void))),
      () =>
        Effect.callback<void>((resume) => {
          server.close(() => resume(Effect.void))
          for (const connection of connections) connection.cut()
          for (const socket of left) socket.destroy()
        }),
    )
    return {
      port: (server.address() as AddressInfo).port,
      lead: (next) => {
        leadsTo = next
        targets.add(next)
      },
      set: (next) => {
        state = next
        switch (next.kind) {
          case "cut":
            for (const connection of connections) connection.cut()
            return
          case "client half-open":
          case "server half-open": {
            const end = next.kind === "client half-open" ? "client" : "server"
            for (const connection of connections) {
              keep(connection[end])
              connection.leave(end)
            }
            connections.clear()
            return
          }
          case "open":
            for (const socket of left) if (targets.has(socket.remotePort ?? 0)) socket.destroy()
        }
        for (const connection of connections) connection.pump()
      },
    }
  })
