// An OpenID provider for the tests, on loopback: oidc-provider with one client that gets access tokens as JWTs by its secret.
//
//   node provider.js PORT [CERT KEY]   until it is killed, by TLS where a certificate is named; prints the issuer once it listens
//   GET  /readings                 how often its keys were read
//   POST /keys/NEW                 from then on tokens are signed by a new key, of the algorithm in the body
//   POST /keys/ONLY                … and the former keys are gone
//   POST /token  scope=ALG tenant=… roles=…   as OAuth 2.0 has it; the claims are put into the token
import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { createServer as createTls } from 'node:https'
import { generateKeyPairSync, randomUUID } from 'node:crypto'
import { Provider } from 'oidc-provider'

const port = Number(process.argv[2])
const tls = process.argv[3] && { cert: readFileSync(process.argv[3]), key: readFileSync(process.argv[4]) }
const issuer = `${tls ? 'https' : 'http'}://127.0.0.1:${port}`
let readings = 0
const AUDIENCE = 'skep'

const kinds = {
  RS256: ['rsa', { modulusLength: 2048 }],
  ES256: ['ec', { namedCurve: 'P-256' }],
  EdDSA: ['ed25519', {}],
}

function key(alg) {
  const { privateKey } = generateKeyPairSync(...kinds[alg])
  return { ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg }
}

let keys = Object.keys(kinds).map(key)
let answer

// The library takes its keys when it is made: with other keys it is made anew.
function begin() {
  const provider = new Provider(issuer, {
    jwks: { keys },
    clients: [{ client_id: 'ci', client_secret: 'secret', grant_types: ['client_credentials'], redirect_uris: [], response_types: [] }],
    enabledJWA: { idTokenSigningAlgValues: ['RS256', 'ES256', 'EdDSA'] },
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => 'urn:skep',
        useGrantedResource: () => true,
        getResourceServerInfo: (ctx) => ({
          scope: 'RS256 ES256 EdDSA',
          audience: ctx.oidc.body?.audience ?? AUDIENCE,
          accessTokenFormat: 'jwt',
          accessTokenTTL: Number(ctx.oidc.body?.ttl ?? 300),
          jwt: { sign: { alg: ctx.oidc.body?.scope ?? 'RS256' } },
        }),
      },
    },
    extraParams: ['tenant', 'roles', 'audience', 'ttl'],
    extraTokenClaims: (ctx) => ({
      tenant: ctx.oidc.body.tenant,
      roles: ctx.oidc.body.roles?.split(' '),
      preferred_username: 'a client',
    }),
  })
  answer = provider.callback()
}
begin()

const serve = (request, response) => {
  if (request.url === '/jwks') readings += 1
  if (request.url === '/readings') return response.end(String(readings))
  if (!request.url.startsWith('/keys/')) return answer(request, response)
  let alg = ''
  request.on('data', (piece) => { alg += piece })
  request.on('end', () => {
    const fresh = key(alg || 'RS256')
    keys = request.url === '/keys/ONLY' ? [fresh] : [fresh, ...keys.filter((old) => old.alg !== fresh.alg)]
    begin()
    response.end(fresh.kid)
  })
};
(tls ? createTls(tls, serve) : createServer(serve)).listen(port, '127.0.0.1', () => console.log(issuer))
