/**
 * The ports of a run. Below the range from which the system takes ports for outgoing connections: a client that tries the
 * port of a stopped server again and again could otherwise be given that very port, connect to itself, and keep the server
 * from coming back.
 */
const first = 10_000 + (process.pid % 190) * 50

export const ports = { broker: first, routes: first + 8, shards: first + 16, metrics: first + 24 }
