use std::time::{Duration, SystemTime};

use crescendo_proto::status;
use crescendo_proto::v1;
use crescendo_proto::v1::access_service_server::AccessService;
use tonic::{Request, Response, Status};

use crate::access::{Login, LoginConfig, LoginError, caller_of};
use crate::leadership::{EngineHandle, Role};

/// Hint to browsers for whose login there is no place.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Tells callers who they are to this controller.
pub struct Callers {
    engine: EngineHandle,
    object_store_url: String,
    login: Option<Login>,
}

impl Callers {
    pub fn new(engine: EngineHandle, object_store_url: String, login: Option<Login>) -> Self {
        Self { engine, object_store_url, login }
    }
}

#[tonic::async_trait]
impl AccessService for Callers {
    async fn who_am_i(
        &self,
        request: Request<v1::WhoAmIRequest>,
    ) -> Result<Response<v1::WhoAmIResponse>, Status> {
        let caller = caller_of(&request)?;
        let (leads, leader) = match self.engine.role() {
            Role::Leading { .. } => (true, String::new()),
            Role::Standby { leader, .. } => (false, leader.unwrap_or_default()),
        };
        Ok(Response::new(v1::WhoAmIResponse {
            name: caller.name,
            role: caller.role.to_string(),
            tenant: caller.tenant.map(|tenant| tenant.to_string()).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            leads,
            leader,
            at: Some(SystemTime::now().into()),
            object_store_url: self.object_store_url.clone(),
        }))
    }

    async fn get_login(
        &self,
        _request: Request<v1::GetLoginRequest>,
    ) -> Result<Response<v1::GetLoginResponse>, Status> {
        let Some(login) = &self.login else { return Ok(Response::new(v1::GetLoginResponse::default())) };
        let endpoints = login.endpoints().await.map_err(refused)?;
        let LoginConfig { client_id, scope } = login.config().clone();
        let authorization_endpoint = endpoints.authorization_endpoint;
        Ok(Response::new(v1::GetLoginResponse { authorization_endpoint, client_id, scope }))
    }

    async fn exchange_code(
        &self,
        request: Request<v1::ExchangeCodeRequest>,
    ) -> Result<Response<v1::ExchangeCodeResponse>, Status> {
        let login = self.login.as_ref();
        let login = login.ok_or_else(|| Status::failed_precondition("browsers do not log in here"))?;
        let v1::ExchangeCodeRequest { code, code_verifier, redirect_uri } = request.into_inner();
        let token = login.exchange(&code, &code_verifier, &redirect_uri).await.map_err(refused)?;
        Ok(Response::new(v1::ExchangeCodeResponse { token }))
    }
}

fn refused(error: LoginError) -> Status {
    if let LoginError::Issuer(_) | LoginError::Answer = &error {
        tracing::warn!(error = &error as &dyn std::error::Error, "a browser cannot log in");
    }
    let text = error.to_string();
    match error {
        LoginError::Busy => status::exhausted(&text, RETRY_AFTER),
        LoginError::Request { .. } => Status::invalid_argument(text),
        LoginError::Issuer(_) | LoginError::Answer => Status::unavailable(text),
        LoginError::Refused { .. } | LoginError::Token { .. } => Status::unauthenticated(text),
    }
}
