/**
 * A pooler in front of a PostgreSQL server, as PgBouncer is one: it refuses parameters of a connection that it does not
 * know, and gives a client a connection to the server for as long as the client is there, or for one transaction each.
 * Each login makes a connection, which is the server's own business; in transaction mode all share all of them.
 */
import { Effect, type Scope } from "effect"
import { type AddressInfo, connect, createServer, type Socket } from "node:net"

const known = new Set(["user", "database", "application_name", "client_encoding"])

/** Cuts a stream of bytes into messages: a type of one byte, unless it is the first of a client, and a length. */
const framer = (typed: boolean, take: (message: Buffer) => void) => {
  let held = Buffer.alloc(0)
  let head = typed ? 1 : 0
  return (chunk: Buffer) => {
    held = Buffer.concat([held, chunk])
    while (held.length >= head + 4) {
      const end = head + held.readInt32BE(head)
      if (held.length < end) return
      const message = held.subarray(0, end)
      held = held.subarray(end)
      head = 1
      take(message)
    }
  }
}

const typeOf = (message: Buffer) => String.fromCharCode(message[0]!)

const parametersOf = (startup: Buffer) =>
  startup
    .toString("utf8", 8)
    .split("\0")
    .filter((_, index) => index % 2 === 0)
    .filter((name) => name !== "")

const errorResponse = (text: string) => {
  const fields = Buffer.from(`SFATAL\0C08P01\0M${text}\0\0`)
  const head = Buffer.from("E\0\0\0\0")
  head.writeInt32BE(fields.length + 4, 1)
  return Buffer.concat([head, fields])
}

interface Connection {
  readonly socket: Socket
  client: Client | undefined
}

interface Client {
  readonly socket: Socket
  connection: Connection | undefined
  /** Cycles that the server has not finished. */
  cycles: number
  readonly waiting: Array<Buffer>
}

export const makePooler = (
  target: number,
  mode: "session" | "transaction",
): Effect.Effect<{ readonly port: number }, never, Scope.Scope> =>
  Effect.gen(function* () {
    /** The last one that became free is the next to be given. */
    const free: Array<Connection> = []
    const sockets = new Set<Socket>()
    const clients = new Set<Client>()

    const keep = (socket: Socket) => {
      sockets.add(socket)
      socket.on("error", () => undefined)
      socket.on("close", () => sockets.delete(socket))
      return socket
    }

    /** Passes on what a client has sent, once it has a connection. */
    const pass = (client: Client) => {
      if (client.waiting.length === 0) return
      if (client.connection === undefined) {
        const connection = free.pop()
        if (connection === undefined) return
        connection.client = client
        client.connection = connection
      }
      for (const message of client.waiting.splice(0)) client.connection.socket.write(message)
    }

    const release = (connection: Connection, client: Client) => {
      connection.client = undefined
      client.connection = undefined
      free.push(connection)
      for (const other of clients) pass(other)
    }

    const login = (client: Client, startup: Buffer) => {
      const connection: Connection = { socket: keep(connect({ host: "127.0.0.1", port: target })), client }
      client.connection = connection
      client.cycles = 1
      connection.socket.write(startup)
      connection.socket.on(
        "data",
        framer(true, (message) => {
          const { client } = connection
          if (client === undefined) return
          client.socket.write(message)
          if (typeOf(message) !== "Z" || --client.cycles > 0 || mode === "session") return
          if (String.fromCharCode(message[5]!) === "I") release(connection, client)
        }),
      )
      connection.socket.on("close", () => connection.client?.socket.destroy())
    }

    const server = createServer((socket) => {
      const client: Client = { socket: keep(socket), connection: undefined, cycles: 0, waiting: [] }
      let isStarted = false
      socket.on(
        "data",
        framer(false, (message) => {
          if (isStarted) {
            if (typeOf(message) === "X") return
            if (typeOf(message) === "S") client.cycles++
            client.waiting.push(message)
            return pass(client)
          }
          isStarted = true
          clients.add(client)
          const unknown = parametersOf(message).find((name) => !known.has(name))
          if (unknown === undefined) return login(client, message)
          socket.end(errorResponse(`unsupported startup parameter: ${unknown}`))
        }),
      )
      socket.on("close", () => {
        clients.delete(client)
        client.connection?.socket.destroy()
      })
    })
    yield* Effect.acquireRelease(
      Effect.callback<void>((resume) => void server.listen(0, "127.0.0.1", () => resume(Effect.void))),
      () =>
        Effect.callback<void>((resume) => {
          server.close(() => resume(Effect.void))
          for (const socket of sockets) socket.destroy()
        }),
    )
    return { port: (server.address() as AddressInfo).port }
  })
