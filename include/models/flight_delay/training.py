"""The estimator: gradient-boosted trees over route, schedule, weather and recent delays."""

from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder

CATEGORIES = ["carrier", "origin", "dest"]


def build(
    *,
    learning_rate: float = 0.05,
    max_iter: int = 150,
    max_leaf_nodes: int = 15,
    min_samples_leaf: int = 200,
    l2_regularization: float = 10.0,
    random_state: int = 0,
) -> Pipeline:
    """An unfitted classifier that takes float columns and the string columns `CATEGORIES`.

    A category unseen in training, or missing, becomes a missing value, which the trees send
    down one branch of every split; so a new carrier gets a prediction and not an error.
    """
    encode = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=float("nan"))
    columns = ColumnTransformer([("categories", encode, CATEGORIES)], remainder="passthrough")
    trees = HistGradientBoostingClassifier(
        learning_rate=learning_rate,
        max_iter=max_iter,
        max_leaf_nodes=max_leaf_nodes,
        min_samples_leaf=min_samples_leaf,
        l2_regularization=l2_regularization,
        categorical_features=list(range(len(CATEGORIES))),
        early_stopping=False,
        random_state=random_state,
    )
    return Pipeline([("columns", columns), ("trees", trees)])
