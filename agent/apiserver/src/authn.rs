//! Who sends a request: by a client certificate, which the listener has checked, or by a bearer token.

use crate::auth::User;
use crate::engine::Engine;
use crate::respond::text;
use crate::status::{Result, Status};
use axum::body::Body;
use http::{HeaderMap, Request, header};

/// A longer token is nobody's.
const MAX_TOKEN: usize = 8 << 10;

/// Somebody who was let in by a token.
pub(crate) struct Bearer {
    pub user: User,
    /// Those of the audiences asked for that the token is meant for.
    pub audiences: Vec<String>,
}

impl Engine {
    /// The user behind a request; nobody is refused without a reason.
    pub fn authenticate(&self, request: &Request<Body>) -> Result<User> {
        if let Some(user) = request.extensions().get::<User>() {
            return Ok(user.clone().authenticated());
        }
        let token = bearer(request.headers()).ok_or_else(Status::unauthorized)?;
        let found = self.by_token(token, &[]).map_err(|why| {
            tracing::debug!(why, "a token was refused");
            Status::unauthorized()
        })?;
        Ok(found.user)
    }

    /// The user behind a token that is meant for one of these audiences; none: for this API. Or why there is none.
    pub fn by_token(&self, token: &str, audiences: &[String]) -> std::result::Result<Bearer, String> {
        if token.len() > MAX_TOKEN {
            return Err("the token is too long".into());
        }
        let own = [self.config.issuer.clone()];
        let audiences = if audiences.is_empty() { &own[..] } else { audiences };
        if let Some(user) = self.config.tokens.user(token) {
            // Such a token is this API's alone.
            let meant: Vec<String> = audiences.iter().filter(|a| own.contains(a)).cloned().collect();
            if meant.is_empty() {
                return Err("the token is not for this audience".into());
            }
            return Ok(Bearer { user: user.clone().authenticated(), audiences: meant });
        }
        let (user, audiences) = self.service_account_of(token, audiences)?;
        Ok(Bearer { user: user.authenticated(), audiences })
    }
}

/// The token of an `Authorization: Bearer` header (RFC 6750, 2.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = text(headers, header::AUTHORIZATION).trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
